//! Bugs planted on purpose, one at a time, to show that the simulation finds them.
//!
//! Without the feature `planted-bugs` the question is a constant `false` and nothing of this is compiled in.

/// A bug that can be planted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bug {
    /// A join is answered before the burst of its turn.
    JoinBeforeFreeze,
    /// A leave behind a pending join is told to the home at once.
    EarlyUnsubscribe,
    /// Leaving looks at the user only, not at the shard that it comes from.
    PresenceNotPerSource,
    /// An answer is given to whoever has the slot now.
    LateAnswer,
    /// A short read clears the latch also when the peer has ended its side.
    LatchWithFin,
    /// What a used-up budget leaves unread is forgotten.
    BudgetWithoutRequeue,
    /// The wake flag is cleared when the mailbox is empty rather than before it is emptied.
    WakeFlagLate,
    /// Typing is hidden from one connection of the user rather than from all.
    ExcludeConnection,
    /// What is unsent is dropped without regard to the frame that has begun.
    CutInsideFrame,
    /// A drain goes on while requests and bursts are under way.
    DrainWithBurst,
    /// An event is delivered when the store is asked to keep it.
    DeliveredBeforeCommit,
    /// What the store has kept unheard is not emitted before what follows.
    GapLeftOpen,
    /// What was read of the past goes into the history whether or not it ends where that begins.
    PrependUnchecked,
    /// The verdicts of a post are taken in another order than the writes were handed out.
    VerdictsReordered,
    /// Who joins is told the place of what the store is still being asked to keep.
    JoinedAtAssigned,
    /// What was deleted stays in the history.
    ErasedInMemory,
    /// A membership is changed by what brings an older version.
    StaleMember,
    /// A join that waits for what was missed is not judged again when that has come.
    JudgedOnce,
    /// What a user asks does not wait for a change of the membership that is under way.
    WriteOvertakesRevoke,
    /// What was read of a membership counts although the membership has changed since.
    OldMembership,
}

impl Bug {
    /// All of them.
    pub const ALL: [Bug; 20] = [
        Bug::JoinBeforeFreeze,
        Bug::EarlyUnsubscribe,
        Bug::PresenceNotPerSource,
        Bug::LateAnswer,
        Bug::LatchWithFin,
        Bug::BudgetWithoutRequeue,
        Bug::WakeFlagLate,
        Bug::ExcludeConnection,
        Bug::CutInsideFrame,
        Bug::DrainWithBurst,
        Bug::DeliveredBeforeCommit,
        Bug::GapLeftOpen,
        Bug::PrependUnchecked,
        Bug::VerdictsReordered,
        Bug::JoinedAtAssigned,
        Bug::ErasedInMemory,
        Bug::StaleMember,
        Bug::JudgedOnce,
        Bug::WriteOvertakesRevoke,
        Bug::OldMembership,
    ];
}

#[cfg(feature = "planted-bugs")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Plants a bug in everything that this thread runs from now on.
#[cfg(feature = "planted-bugs")]
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// Whether the bug is planted.
#[cfg(feature = "planted-bugs")]
pub fn is(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Whether the bug is planted: never.
#[cfg(not(feature = "planted-bugs"))]
#[inline(always)]
pub const fn is(_bug: Bug) -> bool {
    false
}
