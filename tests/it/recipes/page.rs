//! A page of `docs/recipes`: what a person who follows it writes and types, in the page's order.
//!
//! - A line that ends with `` `/a/path`: `` and a fenced block after it are a file.
//! - A block of `console` is typed, its prompts left out.
//! - Any other block is there to be read; YAML never is: all of it is written and used.
//! - A comment at the page's head declares what a test has to replace: paths, ports, and `3600=1`
//!   for other numbers.

use std::{
    fs,
    path::{Path, PathBuf},
};

const DECLARED: &str = "<!-- followed by a test, with others in place of:";

/// Where the pages are.
pub(super) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/recipes")
}

/// A page, taken apart.
pub(super) struct Page {
    /// What the test replaces, as the page declares it.
    pub(super) declared: Vec<String>,
    pub(super) steps: Vec<Step>,
    /// The whole of it.
    pub(super) text: String,
}

/// What is done by who follows a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// A file is written.
    Write { path: String, text: String },
    /// Lines are typed.
    Type(Vec<String>),
}

impl Page {
    pub(super) fn read(name: &str) -> Self {
        let path = folder().join(format!("{name}.md"));
        Self::parse(fs::read_to_string(path).expect("a page"))
    }

    fn parse(text: String) -> Self {
        let declaration = text.lines().find_map(|line| line.strip_prefix(DECLARED));
        let words = declaration.and_then(|rest| rest.strip_suffix("-->"));
        let declared = words.unwrap_or_default().split_whitespace();
        let declared = declared.map(str::to_owned).collect();
        let mut steps = Vec::new();
        let mut before = String::new();
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            match line.strip_prefix("```") {
                Some(kind) => {
                    let block: Vec<&str> =
                        lines.by_ref().take_while(|line| *line != "```").collect();
                    steps.extend(step(kind, &before, &block));
                    before.clear();
                }
                None if line.is_empty() => {}
                None => line.clone_into(&mut before),
            }
        }
        Self {
            declared,
            steps,
            text,
        }
    }

    /// The text of a file that the page has written.
    pub(super) fn file(&self, path: &str) -> &str {
        let text = self.steps.iter().find_map(|step| match step {
            Step::Write { path: at, text } => (at == path).then_some(text),
            Step::Type(_) => None,
        });
        text.unwrap_or_else(|| panic!("the page has no {path}"))
    }
}

/// What a block is: `kind` stands after its fence, `before` is the last line of text before it.
fn step(kind: &str, before: &str, block: &[&str]) -> Option<Step> {
    let named = before
        .strip_suffix("`:")
        .and_then(|rest| rest.rsplit('`').next());
    let path = named.filter(|path| path.starts_with('/'));
    if let Some(path) = path {
        let (path, text) = (path.to_owned(), block.join("\n") + "\n");
        return Some(Step::Write { path, text });
    }
    assert_ne!(kind, "yaml", "YAML of no file, after: {before}");
    (kind == "console").then(|| {
        let typed = block.iter().map(|line| line.strip_prefix("$ "));
        Step::Type(
            typed
                .map(|line| line.expect("a prompt").to_owned())
                .collect(),
        )
    })
}

#[test]
fn a_page_is_taken_apart_as_it_is_written() {
    let text = "# Head\n\n<!-- followed by a test, with others in place of: /srv 80 9=1 -->\n\n\
                Look:\n\n```text\nnothing\n```\n\nThe file `/srv/a.yml`:\n\n```yaml\na: 1\n\nb: 2\n\
                ```\n\n```console\n$ true `x`:\n$ false\n```\n";
    let page = Page::parse(text.to_owned());
    assert_eq!(page.declared, ["/srv", "80", "9=1"]);
    assert_eq!(
        page.steps,
        [
            Step::Write {
                path: "/srv/a.yml".to_owned(),
                text: "a: 1\n\nb: 2\n".to_owned()
            },
            Step::Type(vec!["true `x`:".to_owned(), "false".to_owned()]),
        ]
    );
    assert_eq!(page.file("/srv/a.yml"), "a: 1\n\nb: 2\n");
}

#[test]
#[should_panic(expected = "YAML of no file")]
fn yaml_that_is_no_file_is_refused() {
    Page::parse("Look:\n\n```yaml\na: 1\n```\n".to_owned());
}
