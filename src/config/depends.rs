//! `depends_on`: whom a child waits for before it starts.
//!
//! Absent on purpose: whether the others exist and whether they wait in a circle. Only the core
//! knows all children; what it has to say of an entry it says with the place that is kept here.

use super::{
    diagnostic::Span,
    fault::LifeFault,
    node::Kind,
    rules::{Checker, Field},
};
use crate::spec::{ChildName, Condition, Dependencies, Dependency};

const CONDITION_HELP: &str = "write `started`, `ready` or `completed`";

const HELP: &str = "write a mapping: `depends_on: {db: ready}`";

/// One entry, and where its key stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Need {
    name: ChildName,
    span: Span,
    dependency: Dependency,
}

/// `depends_on`: names and conditions; with nothing in it, none.
pub(super) fn depends_on(checker: &mut Checker<'_>, field: Field<'_>) -> Option<Vec<Need>> {
    let entries = checker.entries(field, Some(HELP))?;
    let mut needs = Vec::new();
    for entry in entries {
        let name = entry.key.parse::<ChildName>();
        let value = field.entry(entry);
        let condition = condition(checker, value, &entry.key);
        match (name, condition) {
            (Ok(name), Some(condition)) => {
                let (path, place) = checker.place(entry.key_span);
                needs.push(Need {
                    name,
                    span: entry.key_span,
                    dependency: Dependency {
                        condition,
                        path: path.to_owned(),
                        line: place.line,
                        column: place.column,
                    },
                });
            }
            (Ok(_), None) => {}
            (Err(source), _) => checker.fault(entry.key_span, LifeFault::DependsName { source }),
        }
    }
    Some(needs)
}

fn condition(checker: &mut Checker<'_>, field: Field<'_>, child: &str) -> Option<Condition> {
    let kind = field.node.kind();
    if matches!(kind, Kind::List | Kind::Mapping) {
        checker.form(field, "a word for each child", Some(CONDITION_HELP));
        return None;
    }
    let text = checker.text(field)?;
    let known = Condition::ALL.into_iter().find(|it| it.as_str() == text);
    if known.is_none() {
        let (child, found) = (child.into(), text.into());
        checker.fault(field.span(), LifeFault::Condition { child, found });
    }
    known
}

/// Nobody waits for himself.
pub(super) fn check_self(checker: &mut Checker<'_>, needs: &[Need], name: &ChildName) {
    for need in needs.iter().filter(|need| need.name == *name) {
        checker.fault(need.span, LifeFault::DependsOnItself);
    }
}

/// Whom this child waits for: what is said of all children does not concern the one it names.
pub(super) fn dependencies(needs: Option<&Vec<Need>>, name: &ChildName) -> Dependencies {
    let needs = needs.into_iter().flatten();
    let others = needs.filter(|need| need.name != *name);
    others
        .map(|need| (need.name.clone(), need.dependency.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::child::tests::{read, read_in, with_defaults};

    fn shown(text: &str) -> Vec<String> {
        let spec = read(text);
        let all = spec.depends_on.iter().map(|(name, dependency)| {
            let Dependency {
                condition,
                line,
                column,
                ..
            } = dependency;
            format!("{name} {condition} {line}:{column}")
        });
        all.collect()
    }

    #[test]
    fn names_have_conditions_and_places() {
        let text = "command: x\ndepends_on: {db: ready, migrate: completed}\n";
        assert_eq!(shown(text), ["db ready 2:14", "migrate completed 2:25"]);
        let text = "command: x\ndepends_on:\n  # é\n  cache: started\n  x-y: ready\n";
        assert_eq!(shown(text), ["cache started 4:3", "x-y ready 5:3"]);
        assert_eq!(shown("command: x\ndepends_on:\n"), [""; 0]);
    }

    #[test]
    fn what_stands_in_defaults_is_for_all_but_the_one_it_names() {
        let context = with_defaults("depends_on: {db: ready, web: ready}");
        let spec = read_in("command: x\n", &context);
        let names: Vec<&str> = spec.depends_on.keys().map(ChildName::as_str).collect();
        assert_eq!(names, ["db"]);
        let db = spec.depends_on.values().next().expect("one");
        assert_eq!(db.path, Path::new("/etc/supervisor/server.yml"));
        assert_eq!((db.line, db.column), (3, 16));
        let own = read_in("command: x\ndepends_on: {a: ready}\n", &context);
        let names: Vec<&str> = own.depends_on.keys().map(ChildName::as_str).collect();
        assert_eq!(names, ["a"]);
        assert!(
            read_in("command: x\ndepends_on:\n", &context)
                .depends_on
                .is_empty()
        );
    }

    #[test]
    fn order_and_place_are_no_part_of_the_digest_and_conditions_are() {
        let one = read("command: x\ndepends_on: {a: ready, b: started}\n");
        let other = read("# moved\ndepends_on:\n  b: started\n  a: ready\ncommand: x\n");
        assert_eq!(one.digest, other.digest);
        let changed = read("command: x\ndepends_on: {a: ready, b: completed}\n");
        assert_ne!(one.digest, changed.digest);
    }
}
