//! The rules of shape that a compiler does not know: lengths, and which layer may name what.

use std::fs;
use std::path::{Path, PathBuf};

const FUNCTION_LINES_MAX: usize = 70;
const FILE_LINES_MAX: usize = 600;

/// Paths that a folder must not name.
const FORBIDDEN: &[(&str, &[&str])] = &[
    ("src/chat", PURE),
    ("src/wire", PURE),
    (
        "src/reactor",
        &[
            "crate::chat::room",
            "crate::chat::presence",
            "crate::chat::typing",
            "crate::chat::user_homes",
            "crate::work",
        ],
    ),
];

const PURE: &[&str] = &[
    "mio",
    "std::net",
    "crossbeam_channel",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
    "crate::reactor",
    "crate::server",
    "crate::work",
];

/// The one file of the server that may lift the ban on `unsafe`.
const REVIEWED: &str = "src/allocator.rs";

/// A source file without comments, the insides of strings, and its tests.
struct Source {
    path: String,
    lines: Vec<String>,
}

fn sources(folder: &str) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = vec![root.join(folder)];
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                if !name.ends_with("tests.rs") {
                    sources.push(Source { path: name, lines: code(&fs::read_to_string(&path).unwrap()) });
                }
            }
        }
    }
    sources
}

/// The lines up to the tests, with comments and the insides of strings left out.
fn code(text: &str) -> Vec<String> {
    let end = text.find("\n#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    let (mut out, mut chars, mut in_string) = (String::new(), text[..end].chars().peekable(), false);
    while let Some(char) = chars.next() {
        match (char, in_string) {
            ('\\', true) => {
                // The character behind a backslash ends nothing; a line stays a line.
                if chars.next() == Some('\n') {
                    out.push('\n');
                }
            }
            ('"', _) => {
                in_string = !in_string;
                out.push('"');
            }
            ('\n', true) => out.push('\n'),
            (_, true) => {}
            ('\'', false) if chars.clone().nth(1) == Some('\'') => drop((chars.next(), chars.next())),
            ('\'', false) if chars.peek() == Some(&'\\') => {
                chars.next();
                chars.next();
            }
            ('/', false) if chars.peek() == Some(&'/') => {
                while chars.peek().is_some_and(|&next| next != '\n') {
                    chars.next();
                }
            }
            _ => out.push(char),
        }
    }
    out.lines().map(str::to_owned).collect()
}

#[test]
fn files_are_short() {
    for source in sources("src") {
        assert!(source.lines.len() <= FILE_LINES_MAX, "{}: {} lines", source.path, source.lines.len());
    }
}

#[test]
fn only_the_reviewed_file_is_unsafe() {
    let is_unsafe = |source: &Source| {
        let words = |line: &String| {
            line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe" || word == "unsafe_code")
        };
        // The crate itself forbids what it names.
        source.lines.iter().any(|line| words(line) && line != "#![deny(unsafe_code)]")
    };
    let named: Vec<String> = sources("src").into_iter().filter(is_unsafe).map(|source| source.path).collect();
    assert_eq!(named, [REVIEWED]);
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    assert!(manifest.contains("\n[lints.rust]\nunsafe_code = \"deny\"\n"), "the ban is lifted");
}

#[test]
fn functions_are_short() {
    let mut long = Vec::new();
    for Source { path, lines } in sources("src") {
        for (first, line) in lines.iter().enumerate() {
            let text = line.trim_start();
            let words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
            if !words.take(6).any(|word| word == "fn") || text.ends_with(';') {
                continue;
            }
            let indent = line.len() - text.len();
            let is_end =
                |line: &&String| line.len() > indent && line[..indent].trim().is_empty() && line[indent..] == *"}";
            let length = lines[first..].iter().take_while(|line| !is_end(line)).count() + 1;
            if length > FUNCTION_LINES_MAX && first + length <= lines.len() {
                long.push(format!("{path}:{}: {length} lines: {text}", first + 1));
            }
        }
    }
    assert!(long.is_empty(), "{}", long.join("\n"));
}

/// All paths that a file names: those of its `use` declarations, spread out, and those within its code.
fn paths(lines: &[String]) -> Vec<String> {
    let mut paths = Vec::new();
    let text = lines.join(" ");
    for statement in text.split("use ").skip(1) {
        let tree: String = statement.split(';').next().unwrap_or_default().split_whitespace().collect();
        spread("", &tree, &mut paths);
    }
    let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    paths.extend(text.split(|c| !is_path(c)).filter(|word| word.contains("::")).map(str::to_owned));
    paths
}

/// Takes `a::{b, c::d}` apart into `a::b` and `a::c::d`.
fn spread(prefix: &str, tree: &str, paths: &mut Vec<String>) {
    let Some((head, rest)) = tree.split_once('{') else {
        return paths.push(format!("{prefix}{tree}"));
    };
    let (prefix, mut depth, mut part) = (format!("{prefix}{head}"), 0, String::new());
    for char in rest.chars() {
        match char {
            ',' if depth == 0 => spread(&prefix, &std::mem::take(&mut part), paths),
            '}' if depth == 0 => break,
            '{' | '}' => {
                depth = if char == '{' { depth + 1 } else { depth - 1 };
                part.push(char);
            }
            _ => part.push(char),
        }
    }
    spread(&prefix, &part, paths);
}

#[test]
fn layers_name_only_what_is_below() {
    let mut named = Vec::new();
    for (folder, forbidden) in FORBIDDEN {
        for source in sources(folder) {
            for path in paths(&source.lines) {
                let is_in = |name: &&&str| path == **name || path.starts_with(&format!("{name}::"));
                if let Some(name) = forbidden.iter().find(is_in) {
                    named.push(format!("{} names {name} ({path})", source.path));
                }
            }
        }
    }
    assert!(named.is_empty(), "{}", named.join("\n"));
}

#[test]
fn paths_are_seen_wherever_they_stand() {
    let lines =
        code("use std::{io, net::{self, TcpStream}}; // use mio::Poll\nfn f() { std::thread::spawn(\"a::b\") }");
    let found = paths(&lines);
    for path in ["std::io", "std::net::self", "std::net::TcpStream", "std::thread::spawn"] {
        assert!(found.iter().any(|other| other == path), "{path} in {found:?}");
    }
    assert!(!found.iter().any(|path| path.contains("mio") || path.contains("a::b")));
}
