//! Users whose older tokens are refused.
//!
//! Every shard keeps the whole list, so that a token is judged where it arrives. The list is bounded; when it is full the
//! entry that was made first goes.

use std::collections::{HashMap, VecDeque};

/// Per user, the time before which tokens must not have been issued.
pub struct Revocations {
    before_ms: HashMap<Box<str>, u64>,
    order: VecDeque<Box<str>>,
    max: usize,
}

impl Revocations {
    /// An empty list of at most `max` users.
    pub fn new(max: usize) -> Self {
        Self { before_ms: HashMap::new(), order: VecDeque::new(), max }
    }

    /// Refuses tokens of the user that were issued before a time in milliseconds since the epoch. An earlier time than
    /// one that is noted already changes nothing.
    pub fn insert(&mut self, user: &str, before_ms: u64) {
        if let Some(noted) = self.before_ms.get_mut(user) {
            *noted = before_ms.max(*noted);
            return;
        }
        if self.order.len() >= self.max
            && let Some(oldest) = self.order.pop_front()
        {
            tracing::warn!(max = self.max, "more revocations than are kept: the oldest is forgotten");
            self.before_ms.remove(&oldest);
        }
        self.order.push_back(user.into());
        self.before_ms.insert(user.into(), before_ms);
    }

    /// Whether a token of the user is refused. One that does not say when it was issued is, once there is an entry.
    pub fn refuses(&self, user: &str, issued_at_ms: Option<u64>) -> bool {
        let Some(&before_ms) = self.before_ms.get(user) else { return false };
        issued_at_ms.is_none_or(|issued| issued < before_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_older_tokens_are_refused() {
        let mut list = Revocations::new(2);
        list.insert("ana", 1000);
        list.insert("ana", 500);
        assert!(list.refuses("ana", Some(999)) && list.refuses("ana", None));
        assert!(!list.refuses("ana", Some(1000)) && !list.refuses("ben", None));
    }

    #[test]
    fn the_oldest_entry_goes_first() {
        let mut list = Revocations::new(2);
        ["ana", "ben", "cem"].iter().for_each(|user| list.insert(user, 1000));
        assert!(!list.refuses("ana", None) && list.refuses("ben", None) && list.refuses("cem", None));
    }
}
