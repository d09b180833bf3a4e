//! The other threads of the server, where there are more of them than cores.
//!
//! Owns when they want the core of a loop that has work left: while the store has something of it to commit; when another
//! loop has input that it has not seen; and now and then whatever they have, so that nobody's members wait for a whole round
//! of somebody else's. What comes of it often joins what is about to be sent. Each switch makes the sends behind it dearer,
//! so it is not done for nothing.
//!
//! The polls of the other loops stand in a poll of each loop's own: one call tells of all. The kernel passes each event on
//! to every poll that it stands in, and locks across all of them when a socket is added to one, so beyond
//! `WATCHED_MAX` loops nobody is watched, and *now and then* has to do.

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

/// The other loops want the core once in so many polls, whatever they have.
const POLLS: u32 = 8;
/// Loops whose polls are watched, at most.
const WATCHED_MAX: usize = 16;

/// What a loop knows of the other threads.
pub struct Neighbours {
    /// The other loops, if there are more than cores.
    loops: Option<Loops>,
    /// The thread that writes to the store has no core of its own.
    is_store_near: bool,
    /// Writes that the store has not answered.
    owed: usize,
}

/// The polls of the other loops.
struct Loops {
    /// `None` if there are too many.
    watch: Option<Watch>,
    polls: u32,
}

/// A poll in which the others' stand.
struct Watch {
    poll: Poll,
    events: Events,
}

impl Neighbours {
    /// Of a loop beside others, whose polls have these descriptors, and a store, if there is one, on so many cores. A loop
    /// whose poll is closed is no neighbour any more.
    ///
    /// # Errors
    /// When the system has no descriptors left.
    pub fn new(polls: impl ExactSizeIterator<Item = RawFd>, has_store: bool, cores: usize) -> io::Result<Self> {
        let count = polls.len() + 1;
        let is_crowded = count > cores;
        let watch = (is_crowded && polls.len() <= WATCHED_MAX).then(|| Watch::new(polls)).transpose()?;
        let loops = is_crowded.then_some(Loops { watch, polls: 0 });
        Ok(Self { loops, is_store_near: has_store && count + 1 > cores, owed: 0 })
    }

    /// So many writes were handed to the store.
    pub fn note_submitted(&mut self, writes: usize) {
        self.owed += writes;
    }

    /// The store has answered so many.
    pub fn note_answered(&mut self, writes: usize) {
        debug_assert!(writes <= self.owed, "{writes} writes were answered of {}", self.owed);
        self.owed = self.owed.saturating_sub(writes);
    }

    /// Whether loops share cores.
    pub fn are_crowded(&self) -> bool {
        self.loops.is_some()
    }

    /// Whether one of them should have the core now. To be asked once in each poll that does not wait.
    pub fn want_core(&mut self) -> bool {
        let is_owed = self.is_store_near && self.owed > 0;
        self.loops.as_mut().is_some_and(Loops::want_core) || is_owed
    }
}

impl Loops {
    fn want_core(&mut self) -> bool {
        self.polls = (self.polls + 1) % POLLS;
        self.polls == 0 || self.watch.as_mut().is_some_and(Watch::have_input)
    }
}

impl Watch {
    fn new(polls: impl Iterator<Item = RawFd>) -> io::Result<Self> {
        let poll = Poll::new()?;
        for (number, fd) in polls.enumerate() {
            poll.registry().register(&mut SourceFd(&fd), Token(number), Interest::READABLE)?;
        }
        // Room for all, or what is left would be told of by the next call.
        Ok(Self { poll, events: Events::with_capacity(WATCHED_MAX) })
    }

    /// Whether input has come for one of them since this was asked last, and is still there.
    fn have_input(&mut self) -> bool {
        self.poll.poll(&mut self.events, Some(Duration::ZERO)).is_ok() && !self.events.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use mio::Waker;

    use super::*;

    /// A loop, which is woken by the second.
    fn neighbour() -> (Poll, Waker) {
        let poll = Poll::new().unwrap();
        let waker = Waker::new(poll.registry(), Token(0)).unwrap();
        (poll, waker)
    }

    #[test]
    fn input_is_told_of_once_and_not_when_it_has_been_seen() {
        let ((first, waker), (mut second, other)) = (neighbour(), neighbour());
        let mut watch = Watch::new([first.as_raw_fd(), second.as_raw_fd()].into_iter()).unwrap();
        assert!(!watch.have_input());
        waker.wake().unwrap();
        assert!(watch.have_input());
        assert!(!watch.have_input(), "it was told of");
        other.wake().unwrap();
        second.poll(&mut Events::with_capacity(1), Some(Duration::ZERO)).unwrap();
        assert!(!watch.have_input(), "it was seen");
        waker.wake().unwrap();
        other.wake().unwrap();
        assert!(watch.have_input());
    }

    #[test]
    fn loops_get_the_core_now_and_then_without_input() {
        let (poll, _waker) = neighbour();
        let mut neighbours = Neighbours::new([poll.as_raw_fd()].into_iter(), false, 1).unwrap();
        let wanted: Vec<_> = (1..=POLLS * 2).filter(|_| neighbours.want_core()).collect();
        assert_eq!(wanted, [POLLS, POLLS * 2]);
        drop(poll);
        assert!(!neighbours.loops.unwrap().watch.unwrap().have_input(), "a loop that has ended wants nothing");
    }

    #[test]
    fn of_too_many_loops_nobody_is_watched() {
        let (polls, waker): (Vec<_>, Vec<_>) = (0..=WATCHED_MAX).map(|_| neighbour()).unzip();
        let fds: Vec<_> = polls.iter().map(Poll::as_raw_fd).collect();
        let mut neighbours = Neighbours::new(fds[1..].iter().copied(), false, 1).unwrap();
        waker[1].wake().unwrap();
        assert!(neighbours.want_core());
        let mut neighbours = Neighbours::new(fds.into_iter(), false, 1).unwrap();
        let wanted: Vec<_> = (1..=POLLS).filter(|_| neighbours.want_core()).collect();
        assert_eq!(wanted, [POLLS]);
    }

    #[test]
    fn the_store_wants_the_core_until_it_has_answered_all() {
        let mut neighbours = Neighbours::new([].into_iter(), true, 1).unwrap();
        assert!(!neighbours.want_core() && !neighbours.are_crowded());
        neighbours.note_submitted(3);
        neighbours.note_submitted(1);
        neighbours.note_answered(3);
        assert!(neighbours.want_core());
        neighbours.note_answered(1);
        assert!(!neighbours.want_core());
    }

    #[test]
    fn nobody_wants_a_core_where_there_are_enough() {
        let (poll, waker) = neighbour();
        let mut neighbours = Neighbours::new([poll.as_raw_fd()].into_iter(), true, 3).unwrap();
        waker.wake().unwrap();
        neighbours.note_submitted(1);
        assert!((0..POLLS * 2).all(|_| !neighbours.want_core()));
    }
}
