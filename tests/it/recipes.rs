//! The pages of `docs/recipes`: each is followed as it is written, with real programs, and what it
//! promises is looked at. So is what is special about those programs.

mod data;
mod deploy;
mod host;
mod jobs;
mod lost;
mod migrating;
mod page;
mod service;
mod web;

use std::collections::BTreeSet;

use page::{Page, folder};

/// A test for each page, by the page's name with `_` for `-`.
macro_rules! pages {
    ($($page:ident: $follow:path),* $(,)?) => {
        /// The pages that are followed.
        const FOLLOWED: &[&str] = &[$(stringify!($page)),*];

        $(
            #[test]
            fn $page() {
                $follow(&Page::read(&stringify!($page).replace('_', "-")));
            }
        )*
    };
}

pages! {
    ci: deploy::ci,
    container: service::container,
    git_pull: deploy::git_pull,
    git_push: deploy::git_push,
    http_server: web::http_server,
    migrating: migrating::follow,
    nginx: web::nginx,
    order: jobs::order,
    periodic: jobs::periodic,
    postgres: data::postgres,
    redis: data::redis,
    systemd: service::systemd,
}

/// The names of the files there, without those that are no pages.
fn written() -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder()).expect("the recipes");
    entries
        .map(|entry| entry.expect("an entry").file_name().into_string())
        .map(|name| name.expect("UTF-8"))
        .filter(|name| name != "README.md")
        .collect()
}

#[test]
fn every_page_is_followed_by_a_test_and_named_in_the_index() {
    let followed = FOLLOWED.iter().map(|page| page.replace('_', "-") + ".md");
    assert_eq!(followed.collect::<BTreeSet<_>>(), written());
    let index = std::fs::read_to_string(folder().join("README.md")).expect("the index");
    let rows = index.lines().filter_map(|line| {
        let (_, rest) = line.strip_prefix("| [")?.split_once("](")?;
        Some(rest.split_once(')')?.0.to_owned())
    });
    assert_eq!(rows.collect::<BTreeSet<_>>(), written());
}
