//! The `.env` file, read as Node's `dotenv` reads it.
//!
//! The same file usually serves the ERP's Node processes, so both must see the same values: `$` is
//! not expanded, a value may hold spaces, ` #` begins a comment unless quoted, a quoted value may
//! span lines, `\n` and `\r` are unescaped in double quotes only, the last of two equal names
//! counts, and a line that is no assignment is skipped, but told of.

use std::collections::BTreeMap;

/// What a `.env` text says.
pub(crate) struct Parsed {
    /// Its assignments.
    pub values: BTreeMap<String, String>,
    /// Lines that are none, counted from 1, by the name that they begin with.
    pub skipped: Vec<(usize, String)>,
}

/// Reads a `.env` text.
pub(crate) fn parse(text: &str) -> Parsed {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let (mut values, mut skipped) = (BTreeMap::new(), Vec::new());
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let line = rest.split('\n').next().unwrap_or(rest);
        let mut used = line.len();
        if let Some((name, raw)) = assignment(line) {
            let from = line.len() - raw.len();
            let (value, value_bytes) = match quoted(&rest[from..]) {
                Some(found) => found,
                None => (unquoted(raw), raw.len()),
            };
            values.insert(name.to_owned(), value);
            used = from + value_bytes;
        } else if let Some(name) = first_name(line) {
            let before = text.len() - rest.len();
            skipped.push((text[..before].matches('\n').count() + 1, name.to_owned()));
        }
        rest = rest[used..].split_once('\n').map_or("", |(_, next)| next);
    }
    Parsed { values, skipped }
}

fn without_export(line: &str) -> &str {
    let line = line.trim_start();
    match line.strip_prefix("export") {
        Some(after) if after.starts_with(char::is_whitespace) => after.trim_start(),
        _ => line,
    }
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_.-".contains(c)
}

fn first_name(line: &str) -> Option<&str> {
    let name = without_export(line).split(|c| !is_name(c)).next()?;
    (!name.is_empty()).then_some(name)
}

/// Splits `NAME=value` or `NAME: value`; the value begins at its first character.
fn assignment(line: &str) -> Option<(&str, &str)> {
    let line = without_export(line);
    let name_end = line.find(|c| !is_name(c))?;
    let (name, after) = line.split_at(name_end);
    let raw = match after.trim_start().strip_prefix('=') {
        Some(raw) => raw,
        None => after.strip_prefix(':').filter(|raw| raw.starts_with(' '))?,
    };
    (!name.is_empty()).then(|| (name, raw.trim_start()))
}

/// A value in quotes and the bytes that it takes with them, also over several lines.
fn quoted(text: &str) -> Option<(String, usize)> {
    let quote = text.chars().next().filter(|c| "'\"`".contains(*c))?;
    let inner = &text[1..];
    let mut end = None;
    let mut escaped = false;
    for (at, c) in inner.char_indices() {
        if c == quote && !escaped {
            end = Some(at);
            break;
        }
        escaped = c == '\\' && !escaped;
    }
    let end = end?;
    // Something other than a comment behind the quote means that it was not a quoted value.
    let after = inner[end + 1..].split('\n').next().unwrap_or("").trim();
    if !after.is_empty() && !after.starts_with('#') {
        return None;
    }
    let mut value = inner[..end].to_owned();
    if quote == '"' {
        value = value.replace("\\n", "\n").replace("\\r", "\r");
    }
    Some((value, end + 2))
}

fn unquoted(raw: &str) -> String {
    raw.split('#').next().unwrap_or("").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_that_node_sees() {
        for (line, value) in [
            ("A=b", "b"),
            ("A = b ", "b"),
            ("  A=b", "b"),
            ("export A=b", "b"),
            ("A: b", "b"),
            ("A=", ""),
            ("A=b c", "b c"),
            ("A=b # c", "b"),
            ("A=b#c", "b"),
            ("A='b # c'", "b # c"),
            ("A=\"b#c\" # d", "b#c"),
            ("A=`b'\"c`", "b'\"c"),
            ("A=\"b\\nc\"", "b\nc"),
            ("A='b\\nc'", "b\\nc"),
            ("A=$B${C}", "$B${C}"),
            ("A=a=b==", "a=b=="),
            ("A=\"b\nc\"\nB=1", "b\nc"),
            ("A=b\r\nB=1\r\n", "b"),
            ("A=1\nA=2", "2"),
            ("A='b' c", "'b' c"),
            ("A=\"b", "\"b"),
            ("\u{feff}A=b", "b"),
            ("# A=1\nA=2\n#A=3", "2"),
        ] {
            assert_eq!(parse(line).values.get("A").map(String::as_str), Some(value), "{line:?}");
        }
    }

    #[test]
    fn other_lines_are_skipped() {
        for line in ["", "\n\n", "A", "# A=b", "=b", "A B=c", "A b", "é=1", "A:b"] {
            assert!(parse(line).values.is_empty(), "{line:?}");
        }
        let parsed = parse("B=1\nnonsense\n\nexport C='2'\n# D\n  E f\nF=\"1\n2\"\nexport G");
        assert_eq!(parsed.values.len(), 3);
        let skipped: Vec<(usize, &str)> = parsed.skipped.iter().map(|(line, name)| (*line, &**name)).collect();
        assert_eq!(skipped, [(2, "nonsense"), (6, "E"), (9, "G")]);
        assert_eq!(parse("A=\"b\nc\"\nB=1").values.get("B").map(String::as_str), Some("1"));
    }
}
