//! Who reads over REST: the history while it is written, and the feed of all events.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::client::{Credential, Http, Lost, messages_path, request};
use crate::member::Page;
use crate::random::Random;
use crate::run::{Run, Stage};

/// Pages of one walk, so that old and new ones are all looked at.
const WALK_PAGES: usize = 12;

/// Walks through rooms in either direction until the end.
pub fn page(run: &Run, mut random: Random) -> Vec<Page> {
    let mut pages = Vec::new();
    while !run.has_failed() && run.stage() < Stage::End {
        let (room, limit) = (random.below(run.rooms.len()), 1 + random.below(40));
        let from = random.one_in(3).then(|| 1 + random.below(400) as u64);
        let _lost = walk(run, room, limit, random.one_in(2), from, WALK_PAGES, &mut pages);
    }
    pages
}

/// Walks through a room, oldest first or newest first, from a place or from its end.
pub fn walk(
    run: &Run,
    room: usize,
    limit: usize,
    is_forward: bool,
    from: Option<u64>,
    pages_max: usize,
    pages: &mut Vec<Page>,
) -> Result<(), Lost> {
    let mut http = Http::dial(run)?;
    let (mut before, mut after) = if is_forward { (None, Some(from.unwrap_or(0))) } else { (from, None) };
    for _ in 0..pages_max {
        let mut path = format!("{}?limit={limit}", messages_path(&run.rooms[room]));
        for (name, value) in [("before", before), ("after", after)] {
            if let Some(value) = value {
                path.push_str(&format!("&{name}={value}"));
            }
        }
        let answer = http.call(&request("GET", &path, &Credential::Service, None, None))?;
        if answer.status == 503 {
            return Err(Lost);
        }
        let page = answer.json();
        run.check_epoch(page["epoch"].as_str(), &path);
        let (Some(messages), Some(more)) = (page["messages"].as_array(), page["more"].as_bool()) else {
            run.fail(format!("{path} was answered {answer:?}"));
            return Err(Lost);
        };
        let edge = if is_forward { messages.last() } else { messages.first() };
        let edge = edge.and_then(|message| message["seq"].as_u64());
        pages.push(Page { room, before, after, limit, body: answer.body });
        match edge {
            Some(edge) if more && is_forward => after = Some(edge),
            Some(edge) if more => before = Some(edge),
            _ => return Ok(()),
        }
        if run.stage() < Stage::End {
            run.pause(Duration::from_millis(25));
        }
    }
    Ok(())
}

#[derive(Deserialize)]
struct FeedPage<'a> {
    #[serde(borrow)]
    events: Vec<&'a RawValue>,
    next: String,
}

/// Who reads the feed.
pub struct FeedReader<'r> {
    run: &'r Run,
    cursor: Option<String>,
    /// Cursors from before, to which it returns as one does who crashed before writing down how far it was.
    older: VecDeque<Option<String>>,
    /// What came, in the order in which it came first.
    events: Vec<String>,
    seen: HashMap<(String, u64), usize>,
    pub repeated: usize,
}

impl<'r> FeedReader<'r> {
    pub fn new(run: &'r Run) -> Self {
        Self { run, cursor: None, older: VecDeque::new(), events: Vec::new(), seen: HashMap::new(), repeated: 0 }
    }

    /// Follows the feed until all events have come.
    pub fn follow(mut self, mut random: Random) -> Self {
        let total = || self.run.last_seqs().map(|seqs| seqs.iter().sum::<u64>() as usize);
        let mut http = None;
        loop {
            if self.run.has_failed() || total().is_some_and(|total| self.events.len() >= total) {
                return self;
            }
            let (limit, wait) = (1 + random.below(300), random.below(3));
            if self.read(&mut http, limit, wait).is_err() {
                http = None;
            } else if random.one_in(25) && self.run.stage() < Stage::End {
                self.cursor = self.older.get(random.below(self.older.len())).cloned().flatten();
            }
        }
    }

    /// Everything from the beginning on, at once.
    pub fn read_all(mut self) -> Result<Vec<String>, Lost> {
        let mut http = None;
        loop {
            let count = self.events.len();
            self.read(&mut http, 700, 0)?;
            if self.events.len() == count {
                return Ok(self.events);
            }
        }
    }

    /// What came, repetitions left out.
    pub fn into_events(self) -> Vec<String> {
        self.events
    }

    fn read(&mut self, http: &mut Option<Http<'r>>, limit: usize, wait: usize) -> Result<(), Lost> {
        let connection = match http {
            Some(connection) => connection,
            None => http.insert(Http::dial(self.run)?),
        };
        let after = self.cursor.as_ref().map(|cursor| format!("&after={cursor}")).unwrap_or_default();
        let path = format!("/api/chat/events?limit={limit}&wait={wait}{after}");
        let answer = connection.call(&request("GET", &path, &Credential::Service, None, None))?;
        if answer.status == 503 {
            return Err(Lost);
        }
        let Ok(page) = serde_json::from_str::<FeedPage<'_>>(&answer.body) else {
            self.run.fail(format!("{path} was answered {answer:?}"));
            return Err(Lost);
        };
        for event in page.events {
            let value: Value = serde_json::from_str(event.get()).unwrap_or(Value::Null);
            let key = (value["roomId"].as_str().unwrap_or_default().to_owned(), value["seq"].as_u64().unwrap_or(0));
            if self.seen.contains_key(&key) {
                self.repeated += 1;
                continue;
            }
            self.seen.insert(key, self.events.len());
            self.events.push(event.get().to_owned());
        }
        self.older.push_back(self.cursor.replace(page.next));
        if self.older.len() > 8 {
            self.older.pop_front();
        }
        Ok(())
    }
}
