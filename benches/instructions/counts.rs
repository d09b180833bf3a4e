//! The file of counts: what was measured, and with which tools.

use std::collections::BTreeMap;
use std::env;
use std::error::Error;
use std::fmt::{self, Display, Formatter};
use std::fs;
use std::process::Command;

use serde::Deserialize;

use crate::operations::OPERATIONS;

const HEAD: &str = "\
# Instructions of one operation each, under callgrind, as the release profile builds it; benches/instructions/main.rs says
# how they are taken, operations.rs what the operations are. Written by
#   cargo run --release --example instructions -- record
# and compared by `check` in its place: 3 % up or down is tolerated, since other versions of the C library and of valgrind
# count a little differently. Only the same rustc is compared, that of rust-toolchain.toml.
# valgrind shows every program the same x86-64 processor, with AVX2 if the real one has it and never with AVX-512 or the
# SHA extensions, so memcpy, memchr, simdutf8 and SHA-256 take the same paths on each processor with AVX2.
";

/// Instructions per operation and what they were taken with.
#[derive(Default, Deserialize)]
pub struct Counts {
    /// What they were taken with.
    pub toolchain: Toolchain,
    /// Instructions by operation.
    pub counts: BTreeMap<String, u64>,
}

impl Counts {
    /// Reads what [`Counts::to_text`] wrote.
    pub fn parse(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }

    /// The file.
    pub fn to_text(&self) -> String {
        let Toolchain { rustc, target, glibc, valgrind } = &self.toolchain;
        let mut text = format!(
            "{HEAD}\n[toolchain]\nrustc = \"{rustc}\"\ntarget = \"{target}\"\nglibc = \"{glibc}\"\n\
             valgrind = \"{valgrind}\"\n\n[counts]\n"
        );
        for name in OPERATIONS.iter().map(|operation| operation.name) {
            text.push_str(&format!("{name} = {}\n", self.counts.get(name).copied().unwrap_or_default()));
        }
        text
    }
}

/// The tools that a count depends on. Only rustc and target must be the same; the others are told when counts differ.
#[derive(Default, PartialEq, Eq, Deserialize)]
pub struct Toolchain {
    /// Version and commit of the compiler.
    pub rustc: String,
    /// What it compiles for.
    pub target: String,
    /// Version of the C library, whose allocator and copying are counted.
    pub glibc: String,
    /// Version of valgrind.
    pub valgrind: String,
}

impl Toolchain {
    /// That of this program.
    pub fn present() -> Result<Self, Box<dyn Error>> {
        if cfg!(debug_assertions) {
            return Err("only a release build is counted".into());
        }
        let env = if cfg!(target_env = "gnu") { "gnu" } else { "other" };
        Ok(Self {
            rustc: compiler_of_this_program()?,
            target: format!("{}-unknown-{}-{env}", env::consts::ARCH, env::consts::OS),
            glibc: version("getconf", "GNU_LIBC_VERSION", "glibc ")?,
            valgrind: version("valgrind", "--version", "valgrind-")?,
        })
    }
}

impl Display for Toolchain {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { rustc, target, glibc, valgrind } = self;
        write!(f, "rustc {rustc}, {target}, glibc {glibc}, valgrind {valgrind}")
    }
}

/// What the compiler wrote about itself into the executable; the one in the search path may be another.
fn compiler_of_this_program() -> Result<String, Box<dyn Error>> {
    const MARK: &[u8] = b"rustc version ";
    let program = fs::read(env::current_exe()?)?;
    let mut found = memchr::memmem::find_iter(&program, MARK).map(|at| &program[at + MARK.len()..]);
    let version = found.find(|version| version.first().is_some_and(u8::is_ascii_digit));
    // The commit and its date stand behind it in brackets.
    let version = version.and_then(|version| version.split_inclusive(|&byte| byte == b')').next());
    Ok(str::from_utf8(version.ok_or("the executable does not name its compiler")?)?.to_owned())
}

fn version(program: &str, argument: &str, prefix: &str) -> Result<String, Box<dyn Error>> {
    let output = Command::new(program).arg(argument).output().map_err(|error| format!("{program}: {error}"))?;
    let text = String::from_utf8(output.stdout)?;
    let version = text.trim().strip_prefix(prefix);
    Ok(version.ok_or_else(|| format!("{program} {argument} says {text:?}"))?.to_owned())
}
