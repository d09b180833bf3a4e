//! The other loops, where there are more of them than cores.
//!
//! Owns when a loop that has still to send gives the core away: when another has input that it has not seen, whose answer
//! may join what is about to be sent, and now and then in any case, so that nobody's members wait for a whole round of
//! somebody else's. Each switch makes the sends behind it dearer, so it is not done for nothing. The polls of the others
//! stand in a poll of its own, so that one call tells of all of them.

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

/// The core is given away in each poll of this number, whatever the others have.
const POLLS: u32 = 4;
/// One would do to know that there is any.
const EVENTS_MAX: usize = 64;

/// The polls of the other loops.
pub struct Neighbours {
    poll: Poll,
    events: Events,
    polls: u32,
}

impl Neighbours {
    /// The loops whose polls have these descriptors. One that is closed is no neighbour any more.
    ///
    /// # Errors
    /// When the system has no descriptors left.
    pub fn new(polls: impl Iterator<Item = RawFd>) -> io::Result<Self> {
        let poll = Poll::new()?;
        for (number, fd) in polls.enumerate() {
            poll.registry().register(&mut SourceFd(&fd), Token(number), Interest::READABLE)?;
        }
        Ok(Self { poll, events: Events::with_capacity(EVENTS_MAX), polls: 0 })
    }

    /// Whether one of them should have the core now. To be asked once in each poll.
    pub fn want_core(&mut self) -> bool {
        self.polls = (self.polls + 1) % POLLS;
        self.polls == 0 || self.have_input()
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
        let mut neighbours = Neighbours::new([first.as_raw_fd(), second.as_raw_fd()].into_iter()).unwrap();
        assert!(!neighbours.have_input());
        waker.wake().unwrap();
        assert!(neighbours.have_input());
        assert!(!neighbours.have_input(), "it was told of");
        other.wake().unwrap();
        second.poll(&mut Events::with_capacity(1), Some(Duration::ZERO)).unwrap();
        assert!(!neighbours.have_input(), "it was seen");
        waker.wake().unwrap();
        other.wake().unwrap();
        assert!(neighbours.have_input());
    }

    #[test]
    fn the_core_is_given_away_now_and_then_without_input() {
        let (poll, _waker) = neighbour();
        let mut neighbours = Neighbours::new([poll.as_raw_fd()].into_iter()).unwrap();
        let wanted: Vec<_> = (0..POLLS * 2).map(|_| neighbours.want_core()).collect();
        assert_eq!(wanted, [false, false, false, true, false, false, false, true]);
        drop(poll);
        assert!(!neighbours.have_input(), "a loop that has ended wants nothing");
    }
}
