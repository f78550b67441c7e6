//! Command lines: a string split as a shell would, or a list of arguments.
//!
//! Absent on purpose: the shell. Nothing is expanded and nothing redirected; a `~` or `$HOME` at
//! the place of the program is a fault, since no program could be found by it.

use super::{
    fault::Fault,
    node::Value,
    rules::{Checker, Field},
    values::unexpanded,
};

/// `command`: a text or a list; never empty.
pub(super) fn argv(checker: &mut Checker<'_>, field: Field<'_>) -> Option<Vec<String>> {
    match &field.node.value {
        Value::List(items) => {
            let argv =
                checker.each(field, |checker, item| checker.text(item).map(str::to_owned))?;
            // With a faulty argument left out, the first may not be the program any more.
            (argv.len() == items.len() && has_program(checker, field, &argv)).then_some(argv)
        }
        Value::Scalar { .. } => {
            let text = checker.text(field)?;
            line(checker, field, text)
        }
        Value::Mapping(_) => {
            let help = "put a command that holds `: ` in quotes";
            checker.form(field, "a text or a list", Some(help));
            None
        }
    }
}

/// A command line, split by the shell's quoting rules; never empty.
pub(super) fn line(checker: &mut Checker<'_>, field: Field<'_>, text: &str) -> Option<Vec<String>> {
    match shell_words::split(text) {
        Ok(argv) => has_program(checker, field, &argv).then_some(argv),
        Err(source) => {
            let name = field.name;
            checker.fault(
                field.span(),
                Fault::Quotes {
                    field: name,
                    source,
                },
            );
            None
        }
    }
}

/// Whether a command line has a program that could exist.
fn has_program(checker: &mut Checker<'_>, field: Field<'_>, argv: &[String]) -> bool {
    let name = field.name;
    let fault = match argv.first().filter(|program| !program.trim().is_empty()) {
        None => Fault::NoProgram { field: name },
        Some(program) => match unexpanded(program) {
            Some(found) => Fault::Home {
                field: name,
                found: found.into(),
            },
            None => return true,
        },
    };
    checker.fault(field.span(), fault);
    false
}
