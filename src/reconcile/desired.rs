//! What should run: a function of listing, mode, startup list, hold, and the last run.
//!
//! It is asked about one child at a time and knows nothing of events: asked twice, it says the
//! same, and whoever was missed by one event is found by the next.

use super::{
    cause::Cause,
    child::{Belief, Child, Phase},
    event::Settings,
    listing::Content,
    planted::{Bug, planted},
};
use crate::spec::{ChildName, Mode};

/// What is wanted of a child that is at rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    /// Nothing: it is as it should be.
    Nothing,
    /// A first run, or one after its file changed.
    Start(Cause),
    /// Its run should be replaced.
    Replace,
    /// Its run should end: its file is gone.
    Stop,
}

/// What is wanted of this child. Restarts by policy and repeats are not its business.
pub(super) fn want(name: &ChildName, child: &Child, settings: &Settings, cause: Cause) -> Want {
    match &child.run {
        Some(run) => match run.phase {
            Phase::Spawning | Phase::Stopping { .. } => Want::Nothing,
            Phase::Running => want_of_running(child, settings),
        },
        None => want_of_resting(name, child, settings, cause),
    }
}

fn want_of_running(child: &Child, settings: &Settings) -> Want {
    if settings.mode != Mode::Sync {
        return Want::Nothing;
    }
    let bad = matches!(
        child.entry.as_ref().map(|entry| &entry.content),
        Some(Content::Bad(_))
    );
    if is_gone_for_good(child) || (bad && planted(Bug::BadFileStops)) {
        return Want::Stop;
    }
    match child.listed() {
        Some(spec)
            if child.ran_digest() != Some(spec.digest) && child.tried != Some(spec.digest) =>
        {
            Want::Replace
        }
        Some(_) | None => Want::Nothing,
    }
}

fn want_of_resting(name: &ChildName, child: &Child, settings: &Settings, cause: Cause) -> Want {
    let Some(spec) = child.listed() else {
        return Want::Nothing;
    };
    // What may live already is not started on a guess (I1).
    let held = child.hold.is_some() && !planted(Bug::HoldIgnored);
    let doubt = child.is_in_doubt() && !planted(Bug::DoubtIgnored);
    if held || doubt || child.tried == Some(spec.digest) {
        return Want::Nothing;
    }
    let first = if cause == Cause::Boot || cause == Cause::Settings {
        cause
    } else {
        Cause::New
    };
    match settings.mode {
        Mode::Quiet => Want::Nothing,
        Mode::Half if child.fresh && settings.startup.contains(name) => Want::Start(first),
        Mode::Half => Want::Nothing,
        Mode::Full if child.fresh => Want::Start(first),
        Mode::Full => Want::Nothing,
        Mode::Sync if child.fresh => Want::Start(first),
        Mode::Sync => match &child.last {
            // It never ran although it is not new: its file was bad when it appeared.
            None => Want::Start(Cause::Changed),
            Some(last) if last.spec.digest != spec.digest => Want::Start(Cause::Changed),
            // It was stopped because its file was gone, and here the file is again.
            Some(last) if last.by.as_ref().map(|by| by.cause) == Some(Cause::Removed) => {
                Want::Start(Cause::New)
            }
            Some(_) => Want::Nothing,
        },
    }
}

/// Whether its file is gone, and that is believed.
pub(super) fn is_gone_for_good(child: &Child) -> bool {
    child.entry.is_none()
        && child
            .gone
            .as_ref()
            .is_some_and(|gone| gone.belief == Belief::Confirmed)
}
