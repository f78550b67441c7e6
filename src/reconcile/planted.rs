//! Bugs that tests plant to see whether the simulator bites.
//!
//! Each switch stands where the real decision is. Outside tests the question is a constant, so
//! that nothing of it is left in a release.

/// A mistake somebody might make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bug {
    /// An end is believed of whatever run lives.
    RunIdUnchecked,
    /// A probe begins while one is under way.
    ProbesPileUp,
    /// That a run was ready is not written down.
    ReadinessForgotten,
    /// One probe that fails is enough.
    HealthImpatient,
    /// A stop is answered before its hold is on disk.
    AnswerBeforeRecord,
    /// What is held is started by itself.
    HoldIgnored,
    /// A hook starts a held child.
    HookStartsHeld,
    /// Nothing follows TERM.
    KillTimerLost,
    /// KILL follows TERM too soon.
    GraceCut,
    /// The start goes on before its prehook has.
    HookChainOutOfOrder,
    /// A failed prehook is taken for a good one.
    HookFailureIgnored,
    /// The posthook runs between the halves of a restart.
    PosthookBetweenHalves,
    /// A file that is gone is believed gone at once.
    RemovalBelievedAtOnce,
    /// However many files go at once, they are believed gone.
    MassRemovalBelieved,
    /// What went while no server watched is not missed.
    RemovalUnwatchedNotMissed,
    /// What went is believed gone while nobody watches whether it comes back.
    RemovalJudgedUnwatched,
    /// An overtaken order is not answered.
    SupersededNotAnswered,
    /// Who joins an order is not answered.
    JoinedNotAnswered,
    /// Who finds the queue full is not answered.
    BusyNotAnswered,
    /// The queue has no end.
    QueueUnbounded,
    /// A repeat fires for a run that is not the latest.
    RepeatOfOlderRun,
    /// The new run begins before the old one has ended.
    RestartBeforeEnd,
    /// What was started is still new.
    FreshKept,
    /// A name that comes back counts from 1 again.
    NumbersForgotten,
    /// A bad file stops what runs.
    BadFileStops,
    /// A process is let go before its end is recorded.
    ReapBeforeRecord,
    /// What may live already is started.
    DoubtIgnored,
    /// Processes that hide whose they are count at the start that finds them, and not later.
    SuspectsForgotten,
    /// Who was in doubt for the sake of a process that is gone stays so.
    SuspectGoneIgnored,
    /// A run that was about to begin when its server died is not begun any more.
    UnbornForgotten,
    /// What a fresh start owed to a child is forgotten with its server.
    RenewalForgotten,
    /// A listing acts although it says nothing new.
    SameListingActs,
    /// A stop that a dead server began is not taken up.
    StopNotTakenUp,
    /// A run begins before its release from the hold is on disk.
    ReleaseNotAwaited,
    /// An order that a dead server had taken is not taken up.
    OrderForgotten,
    /// An order that was carried out is taken up again.
    OrderDoneTwice,
    /// An order is taken and not written down.
    OrderNotRecorded,
    /// A run that is over is not kept for the history.
    RunNotKept,
    /// A restart cut in two by the server's death is taken up as one of what does not run.
    RestartCutInTwo,
    /// A hook's program that outlived its server is not taken back.
    LiveHookForgotten,
    /// The server does not end with the child that it is to end with.
    MainstayMissed,
    /// The server ends with that child although it will be started again.
    MainstayTooSoon,
    /// A run that is starting is told to be ready.
    StartingIsReady,
    /// A wait has no end.
    WaitWithoutEnd,
    /// What a run says is believed of whatever run lives.
    WordOfAnyRun,
    /// A run fails for a word that no server has heard.
    UnheardFails,
    /// A run is ready by a sign that is another's.
    AnySignCounts,
    /// A run that says that it does its work is not heard.
    WatchdogUnheard,
    /// The process that a run names is taken for its main one, whose ever it is.
    MainBelieved,
    /// A run that names another main process over and over fills the log.
    MainToldAgain,
    /// A run that is stopped may put its end off as often as it likes.
    StopPutOffForEver,
    /// A child starts whatever those do on whom it depends.
    DependenciesIgnored,
    /// An order waits for them without end.
    DependenciesWithoutEnd,
    /// Who waits for them is not looked at again.
    DueForgotten,
    /// What a client ordered and waits for them is forgotten with its server.
    DueNotKept,
    /// Nobody looks whether they wait in a circle.
    CircleNotRefused,
    /// Those on whom another depends are stopped before it has ended.
    StopsOutOfOrder,
    /// That a restart is due is not told to those who follow.
    BackoffNotTold,
    /// Who follows one child hears of all.
    FollowersHearAll,
    /// Who follows is not answered when the server ends.
    FollowersLeft,
    /// An upgrade leaves the deadlines behind.
    TimersNotHandedOver,
}

#[cfg(not(test))]
pub(super) const fn planted(_bug: Bug) -> bool {
    false
}

#[cfg(test)]
pub(super) use switch::{ALL, plant, planted};

#[cfg(test)]
mod switch {
    use std::cell::Cell;

    use super::Bug;

    /// Every bug.
    pub(in crate::reconcile) const ALL: &[Bug] = &[
        Bug::RunIdUnchecked,
        Bug::ProbesPileUp,
        Bug::ReadinessForgotten,
        Bug::HealthImpatient,
        Bug::AnswerBeforeRecord,
        Bug::HoldIgnored,
        Bug::HookStartsHeld,
        Bug::KillTimerLost,
        Bug::GraceCut,
        Bug::HookChainOutOfOrder,
        Bug::HookFailureIgnored,
        Bug::PosthookBetweenHalves,
        Bug::RemovalBelievedAtOnce,
        Bug::MassRemovalBelieved,
        Bug::RemovalUnwatchedNotMissed,
        Bug::RemovalJudgedUnwatched,
        Bug::SupersededNotAnswered,
        Bug::JoinedNotAnswered,
        Bug::BusyNotAnswered,
        Bug::QueueUnbounded,
        Bug::RepeatOfOlderRun,
        Bug::RestartBeforeEnd,
        Bug::FreshKept,
        Bug::NumbersForgotten,
        Bug::BadFileStops,
        Bug::ReapBeforeRecord,
        Bug::DoubtIgnored,
        Bug::SuspectsForgotten,
        Bug::SuspectGoneIgnored,
        Bug::UnbornForgotten,
        Bug::RenewalForgotten,
        Bug::SameListingActs,
        Bug::StopNotTakenUp,
        Bug::ReleaseNotAwaited,
        Bug::OrderForgotten,
        Bug::OrderDoneTwice,
        Bug::OrderNotRecorded,
        Bug::RestartCutInTwo,
        Bug::RunNotKept,
        Bug::LiveHookForgotten,
        Bug::MainstayMissed,
        Bug::MainstayTooSoon,
        Bug::StartingIsReady,
        Bug::WaitWithoutEnd,
        Bug::WordOfAnyRun,
        Bug::UnheardFails,
        Bug::StopPutOffForEver,
        Bug::DependenciesIgnored,
        Bug::DependenciesWithoutEnd,
        Bug::DueForgotten,
        Bug::DueNotKept,
        Bug::CircleNotRefused,
        Bug::StopsOutOfOrder,
        Bug::BackoffNotTold,
        Bug::FollowersHearAll,
        Bug::FollowersLeft,
        Bug::WatchdogUnheard,
        Bug::AnySignCounts,
        Bug::MainBelieved,
        Bug::MainToldAgain,
        Bug::TimersNotHandedOver,
    ];

    thread_local! {
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// Plants a bug on this thread, or digs it out.
    pub(in crate::reconcile) fn plant(bug: Option<Bug>) {
        PLANTED.set(bug);
    }

    pub(in crate::reconcile) fn planted(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }
}
