//! Tells another program how far the run has come, and waits for its word. It knows nothing of the run.

use std::io::{self, BufRead};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Waits for lines on standard input.
pub struct Gate {
    lines: Arc<AtomicUsize>,
    passed: usize,
}

impl Gate {
    /// A gate that opens once per line; all gates are open when the input has ended.
    pub fn new() -> io::Result<Self> {
        let lines = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&lines);
        thread::Builder::new().name("gate".into()).spawn(move || {
            for line in io::stdin().lock().lines() {
                if line.is_err() {
                    break;
                }
                counted.fetch_add(1, Ordering::Release);
            }
            counted.store(usize::MAX, Ordering::Release);
        })?;
        Ok(Self { lines, passed: 0 })
    }

    /// Whether the next gate is open.
    pub fn is_open(&self) -> bool {
        self.lines.load(Ordering::Acquire) > self.passed
    }

    /// Goes through; the next gate waits for the next line.
    pub fn pass(&mut self) {
        self.passed += 1;
    }
}
