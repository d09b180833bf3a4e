//! What a shard has handed to threads other than the store's, and what it will hand out at the end of the turn.
//!
//! Owns the bounds: of each kind so many are under way, then the next is refused. It knows nothing of what a job means.

use std::collections::VecDeque;

use super::ids::ConnId;
use super::job::{Job, Question, Verify};
use crate::config::Limits;

/// As many as may be are under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Busy;

/// What is under way between a shard and the crews.
#[derive(Debug)]
pub struct Errands {
    waiting: VecDeque<Job>,
    checks: Tally,
    searches: Tally,
    questions: Tally,
}

/// How many jobs of a kind are under way, and may be.
#[derive(Debug)]
struct Tally {
    under_way: usize,
    max: usize,
}

impl Tally {
    fn enter(&mut self) -> Result<(), Busy> {
        self.enter_below(self.max)
    }

    fn enter_below(&mut self, max: usize) -> Result<(), Busy> {
        if self.under_way >= max {
            return Err(Busy);
        }
        self.under_way += 1;
        Ok(())
    }

    fn leave(&mut self) {
        debug_assert!(self.under_way > 0, "each answer has a job");
        self.under_way = self.under_way.saturating_sub(1);
    }
}

impl Errands {
    /// The errands of one of `shards`.
    pub fn new(limits: &Limits, shards: usize) -> Self {
        let tally = |max: usize| Tally { under_way: 0, max: max.div_ceil(shards) };
        let (checks, searches) = (tally(limits.token_checks_max), tally(limits.token_checks_max));
        let questions = tally(limits.access_questions_max);
        Self { waiting: VecDeque::new(), checks, searches, questions }
    }

    /// Has a signature verified.
    ///
    /// # Errors
    /// Too many are under way.
    pub fn verify(&mut self, verify: Verify) -> Result<(), Busy> {
        self.checks.enter()?;
        self.waiting.push_back(Job::Verify(verify.into()));
        Ok(())
    }

    /// Has a key sought for the token of a connection.
    ///
    /// # Errors
    /// Too many are under way.
    pub fn seek_key(&mut self, conn: ConnId) -> Result<(), Busy> {
        self.searches.enter()?;
        self.waiting.push_back(Job::SeekKey(conn));
        Ok(())
    }

    /// Has the ERP asked. Those who are `inside` already leave half of the places to those who wait to enter.
    ///
    /// # Errors
    /// Too many questions are under way.
    pub fn ask(&mut self, question: Question, inside: bool) -> Result<(), Busy> {
        let max = self.questions.max;
        self.questions.enter_below(if inside { max.div_ceil(2) } else { max })?;
        self.waiting.push_back(Job::Permit(question.into()));
        Ok(())
    }

    /// A question has been answered, or was given up.
    pub fn note_answered(&mut self) {
        self.questions.leave();
    }

    /// A signature was verified.
    pub fn note_verified(&mut self) {
        self.checks.leave();
    }

    /// A key was sought.
    pub fn note_sought(&mut self) {
        self.searches.leave();
    }

    /// What is to be handed out next.
    pub fn poll_job(&mut self) -> Option<Job> {
        self.waiting.pop_front()
    }

    /// Whether nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.tallies().all(|tally| tally.under_way == 0)
    }

    /// Checks that what is to go out is among what is under way.
    pub fn check_invariants(&self) {
        assert!(self.waiting.len() <= self.tallies().map(|tally| tally.under_way).sum());
        assert!(self.tallies().all(|tally| tally.under_way <= tally.max));
    }

    fn tallies(&self) -> impl Iterator<Item = &Tally> {
        [&self.checks, &self.searches, &self.questions].into_iter()
    }
}
