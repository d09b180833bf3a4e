//! Whether the judgement finds what is wrong: the evidence of a run in which all is well, forged in one place at a time.
//!
//! Knows the evidence and the judge, and nothing of a server.

use crate::book::Posted;
use crate::judge::{Evidence, judge};
use crate::random::Random;
use crate::store::Store;

/// One thing that is made wrong.
struct Forgery {
    what: &'static str,
    /// Given a random number, which says where.
    forge: fn(&mut Evidence, &mut Store, usize),
}

const FORGERIES: [Forgery; 12] = [
    Forgery { what: "an event is lost", forge: |_, store, at| drop(store.events.remove(at % store.events.len())) },
    Forgery { what: "the last event is lost", forge: |_, store, _| drop(store.events.pop()) },
    Forgery {
        what: "an event is kept twice",
        forge: |_, store, at| {
            let twice = store.events[at % store.events.len()].clone();
            store.events.push(twice);
        },
    },
    Forgery {
        what: "an event is another one",
        forge: |_, store, at| {
            let at = at % store.events.len();
            store.events[at].text.push(' ');
        },
    },
    Forgery {
        what: "a post that was acknowledged is lost",
        forge: |evidence, _, at| {
            let posts = &mut evidence.books[0].posts;
            let lost = Posted { id: "lost".to_owned(), ..posts[at % posts.len()].clone() };
            posts.push(lost);
        },
    },
    Forgery {
        what: "a post was told another seq",
        forge: |evidence, _, at| {
            let posts = &mut evidence.books[0].posts;
            let at = at % posts.len();
            posts[at].seq += 1;
        },
    },
    Forgery {
        what: "a post is kept that nobody posted",
        forge: |evidence, _, at| {
            let posts = &mut evidence.books[1].posts;
            posts.remove(at % posts.len());
        },
    },
    Forgery {
        what: "a change is kept that nobody made",
        forge: |evidence, _, _| {
            let book = evidence.books.iter_mut().find(|book| book.changes.iter().any(|change| change.is_certain));
            let changes = &mut book.expect("somebody changes something").changes;
            let at = changes.iter().rposition(|change| change.is_certain).expect("it was found");
            changes.remove(at);
        },
    },
    Forgery {
        what: "a member missed the last event",
        forge: |evidence, _, _| {
            let transcripts = evidence.legacies.iter_mut().flat_map(|legacy| &mut legacy.transcripts);
            let transcript = transcripts.into_iter().find(|transcript| !transcript.events.is_empty());
            transcript.expect("somebody has heard something").events.pop();
        },
    },
    Forgery {
        what: "a member saw another order",
        forge: |evidence, _, _| {
            let transcripts = evidence.legacies.iter_mut().flat_map(|legacy| &mut legacy.transcripts);
            let transcript = transcripts.into_iter().find(|transcript| transcript.events.len() > 1);
            transcript.expect("somebody has heard two events").events.swap(0, 1);
        },
    },
    Forgery {
        what: "the feed has another order",
        forge: |evidence, _, at| {
            let at = at % (evidence.feeds[0].len() - 1);
            evidence.feeds[0].swap(at, at + 1);
        },
    },
    Forgery {
        what: "a page shows an older state",
        forge: |evidence, _, at| {
            let mut pages = evidence.pages.iter_mut().filter(|page| page.body.contains(r#""messages":[{"#)).rev();
            let page = pages.nth(at % 8).or_else(|| pages.next_back()).expect("a page has messages");
            page.body = page.body.replacen(r#""edited":"#, r#""Edited":"#, 1);
        },
    },
];

/// The forgeries that are not found.
pub fn unfound(evidence: &Evidence, store: &Store, random: &mut Random) -> Vec<String> {
    let is_unfound = |Forgery { what, forge }: &Forgery| {
        let (mut evidence, mut store) = (evidence.clone(), store.clone());
        forge(&mut evidence, &mut store, random.next() as usize);
        judge(&evidence, &store).0.is_empty().then(|| format!("the judge does not find that {what}"))
    };
    FORGERIES.iter().filter_map(is_unfound).collect()
}
