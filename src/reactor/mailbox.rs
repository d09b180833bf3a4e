//! Mailboxes between threads: a bounded crossbeam channel and a wake flag.
//!
//! The flag says that a wake is on its way, so that a burst of posts costs one system call. The receiver clears it
//! *before* it empties the channel: cleared afterwards, a post that came between would lie there without a wake.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use mio::Waker;

/// The posting side; cloned into every thread that posts.
pub struct Mailer<T> {
    sender: Sender<T>,
    wake: Arc<Wake>,
}

impl<T> Clone for Mailer<T> {
    fn clone(&self) -> Self {
        Self { sender: self.sender.clone(), wake: Arc::clone(&self.wake) }
    }
}

/// The receiving side, owned by one event loop.
pub struct Mailbox<T> {
    receiver: Receiver<T>,
    wake: Arc<Wake>,
}

struct Wake {
    pending: AtomicBool,
    waker: Waker,
}

/// A mailbox of at most `posts_max` posts, whose receiver is woken by `waker`.
pub fn mailbox<T>(posts_max: usize, waker: Waker) -> (Mailer<T>, Mailbox<T>) {
    let (sender, receiver) = bounded(posts_max);
    let wake = Arc::new(Wake { pending: AtomicBool::new(false), waker });
    (Mailer { sender, wake: Arc::clone(&wake) }, Mailbox { receiver, wake })
}

impl<T> Mailer<T> {
    /// Posts, without waiting.
    ///
    /// # Errors
    /// Gives the post back if the mailbox is full, or its owner gone.
    pub fn try_post(&self, post: T) -> Result<(), T> {
        self.sender.try_send(post).map_err(TrySendError::into_inner)?;
        self.wake();
        Ok(())
    }

    /// Posts, waiting for room. Not for event loops.
    ///
    /// # Errors
    /// Gives the post back if the owner is gone.
    pub fn post(&self, post: T) -> Result<(), T> {
        self.sender.send(post).map_err(|error| error.0)?;
        self.wake();
        Ok(())
    }

    /// Whether there are posts that the receiver has not begun to take. It may have begun by the time that this is read.
    pub fn is_waiting(&self) -> bool {
        self.wake.pending.load(Ordering::Relaxed)
    }

    fn wake(&self) {
        if !self.wake.pending.swap(true, Ordering::AcqRel) {
            // It fails only if the descriptor is gone, and then so is the loop.
            let _ = self.wake.waker.wake();
        }
    }
}

impl<T> Mailbox<T> {
    /// From now on, a post wakes again. Called before the channel is emptied.
    pub fn clear_wake(&self) {
        self.wake.pending.swap(false, Ordering::AcqRel);
    }

    /// The next post.
    pub fn receive(&self) -> Option<T> {
        self.receiver.try_recv().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mio::{Events, Poll, Token};
    use std::time::Duration;

    #[test]
    fn many_posters_and_no_post_is_left_behind() {
        let mut poll = Poll::new().unwrap();
        let waker = Waker::new(poll.registry(), Token(0)).unwrap();
        let (mailer, mailbox) = mailbox::<u32>(8, waker);
        let posters: Vec<_> = (0..4)
            .map(|_| {
                let mailer = mailer.clone();
                std::thread::spawn(move || (0..2000).for_each(|n| mailer.post(n).unwrap()))
            })
            .collect();
        let (mut events, mut seen) = (Events::with_capacity(4), 0);
        while seen < 8000 {
            poll.poll(&mut events, Some(Duration::from_secs(20))).unwrap();
            assert!(!events.is_empty(), "a wake was lost after {seen} posts");
            mailbox.clear_wake();
            while mailbox.receive().is_some() {
                seen += 1;
            }
        }
        posters.into_iter().for_each(|poster| poster.join().unwrap());
    }

    #[test]
    fn a_full_mailbox_gives_the_post_back() {
        let poll = Poll::new().unwrap();
        let (mailer, mailbox) = mailbox::<u32>(1, Waker::new(poll.registry(), Token(0)).unwrap());
        assert_eq!((mailer.try_post(1), mailer.try_post(2)), (Ok(()), Err(2)));
        assert!(mailer.is_waiting());
        mailbox.clear_wake();
        assert!(!mailer.is_waiting(), "it has begun to take them");
        assert_eq!(mailbox.receive(), Some(1));
    }
}
