//! Who depends on whom, and what is wrong with that: names that nobody declares, and circles.
//!
//! A child depends on those that its `depends_on` names, and on the child that its prehook starts.
//! Circles of hooks alone are the business of `hooks`. Nothing in here recurses, however long a
//! row of children is.

use std::collections::{BTreeMap, BTreeSet};

use super::{State, child::Child, listing::Content};
use crate::spec::{ChildName, Hook, RunId, Spec, Verb};

/// What a name stands for.
pub(super) enum Declared<'a> {
    /// A good file.
    Good(&'a Spec),
    /// A bad file, several files, or a process whose file is gone.
    Otherwise,
    /// Nothing.
    Not,
}

/// By what one child leads to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Link {
    Hook,
    Depends,
}

/// Looks a name up.
type Lookup<'a> = &'a dyn Fn(&ChildName) -> Declared<'a>;

/// Whom a child of this spec needs, and by what.
fn links(spec: &Spec) -> impl Iterator<Item = (&ChildName, Link)> {
    let hook = match &spec.prehook {
        Some(Hook::Command { verb, child }) if *verb != Verb::Stop => Some((child, Link::Hook)),
        Some(Hook::Command { .. } | Hook::Run(_)) | None => None,
    };
    let needs = spec.depends_on.keys().map(|name| (name, Link::Depends));
    needs.chain(hook)
}

/// Everything wrong with whom this child depends on, each a whole diagnostic.
pub(super) fn faults<'a>(name: &ChildName, spec: &Spec, lookup: Lookup<'a>) -> Vec<String> {
    let mut faults = Vec::new();
    for (other, dependency) in &spec.depends_on {
        let (path, line, column) = (&dependency.path, dependency.line, dependency.column);
        let place = format!("{}:{line}:{column}", path.display());
        if let Declared::Not = lookup(other) {
            faults.push(format!(
                "{place}: `{name}` depends on `{other}`, and no file declares that\n\
                 help: add `{other}.yml` to a loadpath, or correct the name"
            ));
        } else if let Some(way) = way_back(name, other, Link::Depends, lookup) {
            faults.push(format!(
                "{place}: `{name}` depends on itself: {way}\nhelp: take one of them out"
            ));
        }
    }
    if let Some(hook @ Hook::Command { verb, child }) = &spec.prehook
        && *verb != Verb::Stop
        && let Some(way) = way_back(name, child, Link::Hook, lookup)
    {
        let path = spec.path.display();
        faults.push(format!(
            "{path}: `{name}` depends on itself by its prehook `{hook}`: {way}\n\
             help: take one of them out"
        ));
    }
    faults
}

/// The shortest way from a child by way of another back to itself on which somebody depends on
/// somebody.
fn way_back<'a>(
    name: &ChildName,
    other: &ChildName,
    by: Link,
    lookup: Lookup<'a>,
) -> Option<String> {
    let mut steps: Vec<(ChildName, Link, Option<usize>)> = vec![(other.clone(), by, None)];
    let mut seen = BTreeSet::from([(other.clone(), by)]);
    let mut at = 0;
    while let Some((here, strongest, _)) = steps.get(at).cloned() {
        if here == *name && strongest == Link::Depends {
            return Some(told(name, &steps, at));
        }
        if let Declared::Good(spec) = lookup(&here) {
            for (next, link) in links(spec) {
                let link = link.max(strongest);
                if here != *name && seen.insert((next.clone(), link)) {
                    steps.push((next.clone(), link, Some(at)));
                }
            }
        }
        at += 1;
    }
    None
}

fn told(name: &ChildName, steps: &[(ChildName, Link, Option<usize>)], last: usize) -> String {
    let mut way = Vec::new();
    let mut at = Some(last);
    while let Some((step, _, before)) = at.and_then(|at| steps.get(at)) {
        way.push(step.as_str());
        at = *before;
    }
    way.push(name.as_str());
    way.reverse();
    way.join(" -> ")
}

/// Everybody whom a child of this spec needs, directly or not.
fn reach<'a>(spec: &Spec, lookup: Lookup<'a>) -> BTreeSet<ChildName> {
    let mut all: BTreeSet<ChildName> = links(spec).map(|(name, _)| name.clone()).collect();
    let mut next: Vec<ChildName> = all.iter().cloned().collect();
    while let Some(name) = next.pop() {
        let Declared::Good(spec) = lookup(&name) else {
            continue;
        };
        for (name, _) in links(spec) {
            if all.insert(name.clone()) {
                next.push(name.clone());
            }
        }
    }
    all
}

/// The spec that says whom a child depends on: of what runs, else of what would.
fn needing(child: &Child) -> Option<&Spec> {
    let runs = child.run.as_ref().map(|run| &run.spec);
    runs.or(child.in_force()).map(AsRef::as_ref)
}

impl State {
    fn declared(&self, name: &ChildName) -> Declared<'_> {
        let child = self.children.get(name);
        match child.map(|child| (child.entry.as_ref().map(|it| &it.content), child)) {
            Some((Some(Content::Good(spec)), _)) => Declared::Good(spec),
            Some((Some(Content::Bad(_) | Content::Conflict), _)) => Declared::Otherwise,
            Some((None, child)) if child.is_live() => Declared::Otherwise,
            Some((None, _)) | None => Declared::Not,
        }
    }

    /// Everything wrong with whom a child of this spec depends on, each a whole diagnostic.
    pub(super) fn graph_faults(&self, name: &ChildName, spec: &Spec) -> Vec<String> {
        if spec.depends_on.is_empty() && spec.prehook.is_none() {
            return Vec::new();
        }
        faults(name, spec, &|name| self.declared(name))
    }

    /// What is wrong with whom anybody depends on.
    pub(super) fn all_graph_faults(&self) -> Vec<String> {
        let listed = |(name, child): (&ChildName, &Child)| {
            let spec = child.listed()?;
            Some(self.graph_faults(name, spec))
        };
        self.children.iter().filter_map(listed).flatten().collect()
    }

    /// Everybody whom a child of this spec needs, where it depends on anybody.
    pub(super) fn needed_by(&self, spec: &Spec) -> BTreeSet<ChildName> {
        match spec.depends_on.is_empty() {
            true => BTreeSet::new(),
            false => reach(spec, &|name| self.declared(name)),
        }
    }

    /// The live children that depend on this one, directly or not, of those that are chosen; and
    /// their runs. Of a circle nobody is among them.
    pub(super) fn dependents(
        &self,
        name: &ChildName,
        chosen: &dyn Fn(&ChildName, &Child) -> bool,
    ) -> BTreeMap<ChildName, RunId> {
        let mut direct: BTreeMap<&ChildName, Vec<&ChildName>> = BTreeMap::new();
        for (other, child) in &self.children {
            let needed = needing(child).into_iter();
            for needed in needed.flat_map(|spec| spec.depends_on.keys()) {
                direct.entry(needed).or_default().push(other);
            }
        }
        if !direct.contains_key(name) {
            return BTreeMap::new();
        }
        let mut found = BTreeSet::new();
        let mut next = vec![name];
        while let Some(at) = next.pop() {
            for dependent in direct.get(at).into_iter().flatten() {
                if found.insert(*dependent) {
                    next.push(dependent);
                }
            }
        }
        let needs: BTreeSet<&ChildName> = self.needs_of(name);
        let found = found.into_iter().filter(|it| !needs.contains(it));
        let live = |it: &ChildName| {
            let child = self.children.get(it).filter(|child| chosen(it, child))?;
            Some((it.clone(), child.run.as_ref()?.id))
        };
        found.filter_map(live).collect()
    }

    /// Whom a child depends on, directly or not, itself only in a circle.
    pub(super) fn needs_of(&self, name: &ChildName) -> BTreeSet<&ChildName> {
        let mut all = BTreeSet::new();
        let of = |name: &ChildName| self.children.get(name).and_then(needing);
        let mut next: Vec<&Spec> = of(name).into_iter().collect();
        while let Some(spec) = next.pop() {
            for needed in spec.depends_on.keys() {
                if all.insert(needed) {
                    next.extend(of(needed));
                }
            }
        }
        all
    }

    /// The live children that say themselves that they depend on this one.
    pub(super) fn direct_dependents(&self, name: &ChildName) -> Vec<&ChildName> {
        let needs = |(_, child): &(&ChildName, &Child)| {
            let run = child.run.as_ref();
            run.is_some_and(|run| run.spec.depends_on.contains_key(name))
        };
        let all = self.children.iter().filter(needs);
        all.map(|(name, _)| name).collect()
    }
}
