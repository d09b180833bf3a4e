//! Who may enter which room: the rules of the configuration, what a token grants, and the one decision.
//!
//! Owns patterns, rules and grants, and [`decide`], which everything that is about a room goes through, over WebSocket
//! and REST. Must not know where members are kept or how the ERP is asked: what came of that comes in. Invariant: what is
//! not known grants nothing.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::auth::Role;
use crate::wire::value::room_name;

/// How it is found out who may enter a room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Every valid token may.
    Open,
    /// The token says so.
    Claims,
    /// Who is a member may; the store has the list.
    Members,
    /// The ERP is asked over HTTP.
    Ask,
}

impl Mode {
    fn from_name(name: &str) -> Option<Self> {
        match name {
            "open" => Some(Self::Open),
            "claims" => Some(Self::Claims),
            "members" => Some(Self::Members),
            "ask" => Some(Self::Ask),
            _ => None,
        }
    }
}

/// What somebody may do in a room; of two the greater allows more.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Level {
    /// Nothing: the room is closed to them.
    Nothing,
    /// Be there, read, and note what was read.
    Reader,
    /// Everything that a user may.
    Member,
}

impl Level {
    /// The level that a `role` in a grant, a member or an answer names.
    pub fn from_role(name: &str) -> Option<Self> {
        match name {
            "reader" => Some(Self::Reader),
            "member" => Some(Self::Member),
            _ => None,
        }
    }

    /// The `role`; `None` for nothing.
    pub fn role(self) -> Option<&'static str> {
        match self {
            Self::Nothing => None,
            Self::Reader => Some("reader"),
            Self::Member => Some("member"),
        }
    }

    /// Whether it is enough for something.
    pub fn allows(self, right: Right) -> bool {
        match right {
            Right::Read => self >= Self::Reader,
            Right::Write => self >= Self::Member,
        }
    }
}

/// What the ERP says of a user and a room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Permit {
    /// What the user may do there.
    pub level: Level,
    /// For how long that counts; 0 is for what it was asked for alone.
    pub ttl_ms: u64,
}

/// What is needed for something that is asked about a room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Right {
    /// To join, to see who is there and what was said, to note what was read.
    Read,
    /// To type, send, change, delete and react.
    Write,
}

/// Decides what somebody may do in a room: by the rule that counts for it, the role, what the token grants, and what its
/// home knows of the user, as a member or from the ERP. `None`: that is for its home to find out.
pub fn decide(
    mode: Option<Mode>,
    role: Role,
    grants: Option<&Grants>,
    room: &str,
    known: Option<Level>,
) -> Option<Level> {
    match (role, mode) {
        (Role::Service, _) | (_, Some(Mode::Open)) => Some(Level::Member),
        (_, None) => Some(Level::Nothing),
        (_, Some(Mode::Claims)) => Some(grants.map_or(Level::Nothing, |grants| grants.level(room))),
        (_, Some(Mode::Members | Mode::Ask)) => known,
    }
}

/// A room's name in which each `*` stands for any text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pattern(Box<str>);

impl Pattern {
    /// Whether the pattern matches the whole name.
    pub fn matches(&self, room: &str) -> bool {
        let Some((first, rest)) = self.0.split_once('*') else { return *self.0 == *room };
        let (middle, last) = rest.rsplit_once('*').unwrap_or(("", rest));
        let Some(mut between) = room.strip_prefix(first).and_then(|room| room.strip_suffix(last)) else {
            return false;
        };
        // Each piece where it first stands leaves most for those behind it.
        for piece in middle.split('*') {
            let Some((_, behind)) = between.split_once(piece) else { return false };
            between = behind;
        }
        true
    }

    fn is_name(&self) -> bool {
        !self.0.contains('*')
    }
}

/// Which mode counts for which rooms: of the patterns that match, the first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rules(Vec<(Pattern, Mode)>);

impl Rules {
    /// Every room is open.
    pub fn open() -> Self {
        Self(vec![(Pattern("*".into()), Mode::Open)])
    }

    /// Reads `pattern=mode` items that are separated by commas; a mode alone is that of all rooms.
    pub fn parse(text: &str) -> Option<Self> {
        let rules = text.split(',').map(|item| {
            let (pattern, mode) = item.trim().rsplit_once('=').unwrap_or(("*", item.trim()));
            let pattern = Some(pattern.trim()).filter(|pattern| room_name(pattern).is_some())?;
            Some((Pattern(pattern.into()), Mode::from_name(mode.trim())?))
        });
        rules.collect::<Option<Vec<_>>>().map(Self)
    }

    /// The mode of a room; `None` closes it to all but services.
    pub fn mode_of(&self, room: &str) -> Option<Mode> {
        self.0.iter().find(|(pattern, _)| pattern.matches(room)).map(|(_, mode)| *mode)
    }

    /// Whether some rooms have this mode.
    pub fn has(&self, mode: Mode) -> bool {
        self.patterns(mode).next().is_some()
    }

    /// The patterns of a mode, as they were written.
    pub fn patterns(&self, mode: Mode) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(_, of)| *of == mode).map(|(pattern, _)| &*pattern.0)
    }
}

/// The rooms that a token grants.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Grants {
    /// By name, in order.
    names: Box<[(Pattern, Level)]>,
    patterns: Box<[(Pattern, Level)]>,
}

/// One item of the claim.
#[derive(Deserialize)]
#[serde(untagged)]
enum Item {
    Room(String),
    WithRole { room: String, role: Option<String> },
}

impl Grants {
    /// Reads the claim: an array of names and patterns, each as a string or as `{"room", "role"}`. What is anything else
    /// grants nothing; `None` if that is all.
    pub fn parse(claim: &RawValue) -> Option<Self> {
        let items: Vec<&RawValue> = serde_json::from_str(claim.get()).ok()?;
        let read = |item: &&RawValue| {
            // An array would be taken for the members of an object, in order.
            let item = Some(item.get()).filter(|item| !item.starts_with('['))?;
            let (room, level) = match serde_json::from_str(item).ok()? {
                Item::Room(room) | Item::WithRole { room, role: None } => (room, Level::Member),
                Item::WithRole { room, role: Some(role) } => (room, Level::from_role(&role)?),
            };
            Some((Pattern(room.into()), level))
        };
        let all = items.iter().filter_map(read);
        let (mut names, patterns): (Vec<_>, Vec<_>) = all.partition(|(pattern, _)| pattern.is_name());
        // Of a room that is named twice the greater level comes first, and the other goes.
        names.sort_by(|(a, at), (b, bt)| a.0.cmp(&b.0).then(bt.cmp(at)));
        names.dedup_by(|(later, _), (earlier, _)| later == earlier);
        let grants = Self { names: names.into(), patterns: patterns.into() };
        (!grants.names.is_empty() || !grants.patterns.is_empty()).then_some(grants)
    }

    /// What they allow in a room: the most that one of them does.
    pub fn level(&self, room: &str) -> Level {
        let named = self.names.binary_search_by(|(name, _)| (*name.0).cmp(room));
        let named = named.ok().and_then(|at| self.names.get(at)).map(|(_, level)| *level);
        let matching = self.patterns.iter().filter(|(pattern, _)| pattern.matches(room)).map(|(_, level)| *level);
        named.into_iter().chain(matching).max().unwrap_or(Level::Nothing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEVELS: [Level; 3] = [Level::Nothing, Level::Reader, Level::Member];

    fn grants(claim: &str) -> Option<Grants> {
        Grants::parse(&RawValue::from_string(claim.to_owned()).unwrap())
    }

    #[test]
    fn one_function_decides() {
        let granted = grants(r#"["mine",{"room":"seen","role":"reader"}]"#).unwrap();
        let all = |role, mode, room, known| decide(mode, role, Some(&granted), room, known);
        for known in [None, Some(Level::Nothing), Some(Level::Reader), Some(Level::Member)] {
            for role in [Role::User, Role::Moderator] {
                assert_eq!(all(role, None, "mine", known), Some(Level::Nothing), "no rule closes a room");
                assert_eq!(all(role, Some(Mode::Open), "other", known), Some(Level::Member));
                for (room, level) in [("mine", LEVELS[2]), ("seen", LEVELS[1]), ("other", LEVELS[0])] {
                    assert_eq!(all(role, Some(Mode::Claims), room, known), Some(level), "{room}");
                }
                assert_eq!(decide(Some(Mode::Claims), role, None, "mine", known), Some(Level::Nothing));
                assert_eq!(all(role, Some(Mode::Members), "mine", known), known);
                assert_eq!(all(role, Some(Mode::Ask), "mine", known), known);
            }
            for mode in [None, Some(Mode::Open), Some(Mode::Claims), Some(Mode::Members), Some(Mode::Ask)] {
                assert_eq!(all(Role::Service, mode, "other", known), Some(Level::Member), "{mode:?}");
            }
        }
    }

    #[test]
    fn levels_and_rights() {
        for (level, reads, writes) in
            [(Level::Nothing, false, false), (Level::Reader, true, false), (Level::Member, true, true)]
        {
            assert_eq!((level.allows(Right::Read), level.allows(Right::Write)), (reads, writes), "{level:?}");
            assert_eq!(level.role().and_then(Level::from_role).unwrap_or(Level::Nothing), level);
        }
        assert_eq!(Level::from_role("owner"), None);
    }

    #[test]
    fn patterns() {
        for (pattern, matching, others) in [
            ("room", vec!["room"], vec!["", "rooms", "a room"]),
            ("*", vec!["", "a", "a/b*"], vec![]),
            ("project/*", vec!["project/", "project/7", "project/7/x"], vec!["project", "a/project/7"]),
            ("*/private", vec!["/private", "a/private", "a/private/private"], vec!["private", "a/private/b"]),
            ("a*b*c", vec!["abc", "a-b-c", "abbc", "abcbc"], vec!["ac", "acb", "abcd", "xabc"]),
            ("a*a", vec!["aa", "aba"], vec!["a"]),
            ("a**b", vec!["ab", "a*b"], vec!["a"]),
            ("*ä*", vec!["ä", "xäx"], vec!["a"]),
        ] {
            let pattern = Pattern(pattern.into());
            assert!(matching.iter().all(|room| pattern.matches(room)), "{pattern:?}");
            assert!(!others.iter().any(|room| pattern.matches(room)), "{pattern:?}");
        }
        let hostile = Pattern("*a".repeat(100).into());
        assert!(!hostile.matches(&"ab".repeat(99)));
    }

    #[test]
    fn of_the_rules_that_match_the_first_counts() {
        let rules = Rules::parse("project/*=members, lobby=open ,team/*=claims").unwrap();
        for (room, mode) in [
            ("project/7", Some(Mode::Members)),
            ("lobby", Some(Mode::Open)),
            ("team/a", Some(Mode::Claims)),
            ("lobby2", None),
        ] {
            assert_eq!(rules.mode_of(room), mode, "{room}");
        }
        assert!(rules.has(Mode::Open) && !Rules::parse("members").unwrap().has(Mode::Open));
        assert_eq!(Rules::parse("open").unwrap(), Rules::open());
        assert_eq!(Rules::parse("a=b=open").unwrap().mode_of("a=b"), Some(Mode::Open));
        assert_eq!(Rules::parse("a*=open,*=claims").unwrap().mode_of("ab"), Some(Mode::Open));
        for bad in ["", "Open", "a=", "=open", "a=closed", "open,", "a", "a=open,,b=open", "a\u{1}=open"] {
            assert_eq!(Rules::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn what_a_token_grants() {
        let claim = r#"["a","b*",{"room":"b1","role":"reader"},{"room":"c*","role":"reader"},{"room":"cc"},
                        {"room":"d","role":"owner"},{"room":"d","role":7},7,null,["e"],["e","member"],{"role":"member"},
                        {"room":"f","role":"reader"},"f",{"room":"f","role":"reader"}]"#;
        let granted = grants(claim).unwrap();
        for (room, level) in [
            ("a", Level::Member),
            ("b", Level::Member),
            ("b1", Level::Member),
            ("c", Level::Reader),
            ("cc", Level::Member),
            ("d", Level::Nothing),
            ("e", Level::Nothing),
            ("f", Level::Member),
            ("7", Level::Nothing),
            ("", Level::Nothing),
        ] {
            assert_eq!(granted.level(room), level, "{room}");
        }
        for nothing in ["[]", "7", "null", "\"a\"", "{\"room\":\"a\"}", "[7]", "true"] {
            assert_eq!(grants(nothing), None, "{nothing}");
        }
    }
}
