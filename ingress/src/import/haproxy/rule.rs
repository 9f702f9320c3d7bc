//! ACLs and conditions, as far as they are about the server name.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use crate::route::{Sni, SniPattern};

/// Named ACLs of one section; definitions of the same name add up.
#[derive(Debug, Default)]
pub(super) struct Acls {
    named: BTreeMap<String, Criterion>,
    /// Those that ask for the server name, understood or not.
    by_name: BTreeSet<String>,
}

/// What one ACL looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Criterion {
    /// A suffix is a wildcard here, although it takes deeper names too.
    Names(Vec<SniPattern>),
    /// That the client speaks TLS, as all do whom we route by name.
    Hello,
    Always,
    /// Why it is not carried over.
    Other(String),
}

/// What a rule takes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Taken {
    pub(super) names: Vec<SniPattern>,
    /// Everything that comes as far as this rule.
    pub(super) all: bool,
    /// Everything of it that is TLS.
    pub(super) tls: bool,
    /// Alternatives that are not carried over, and why.
    pub(super) left_out: Vec<String>,
}

/// Criteria under the names that they have had since 1.3.
const SNI: &[&str] = &["req.ssl_sni", "req_ssl_sni", "req.ssl_sni,lower", "req_ssl_sni,lower"];
const HELLO: &[&str] = &["req.ssl_hello_type", "req_ssl_hello_type"];

impl Acls {
    /// The words behind `acl`.
    pub(super) fn define(&mut self, words: &[String], note: &mut impl FnMut(String)) {
        let Some((name, words)) = words.split_first() else { return };
        if words.iter().any(|word| word.contains("ssl_sni")) {
            self.by_name.insert(name.clone());
        }
        let new = criterion(words, note);
        match (self.named.get_mut(name), new) {
            (None, new) => drop(self.named.insert(name.clone(), new)),
            (Some(Criterion::Names(names)), Criterion::Names(more)) => names.extend(more),
            (Some(Criterion::Names(_)), Criterion::Other(why)) => {
                // The names still lead there; the rest is told.
                note(format!("acl {name}: {why}"));
            }
            (Some(old @ Criterion::Other(_)), Criterion::Names(names)) => *old = Criterion::Names(names),
            (Some(old), new) => {
                if *old != new {
                    *old = Criterion::Other(format!("acl {name} is about several things"));
                }
            }
        }
    }

    /// A condition with its `if` or `unless`; without any word it holds always.
    pub(super) fn condition(&self, words: &[String], note: &mut impl FnMut(String)) -> Taken {
        let mut taken = Taken::default();
        let words = match words.split_first() {
            None => {
                taken.all = true;
                return taken;
            }
            Some((word, words)) if word == "if" => words,
            Some((word, _)) => {
                taken.left_out.push(format!("`{word}`: only conditions with `if` are carried over"));
                return taken;
            }
        };
        for alternative in alternatives(words) {
            match self.conjunction(&alternative, note) {
                Ok(Criterion::Names(names)) => taken.names.extend(names),
                Ok(Criterion::Hello) => taken.tls = true,
                Ok(Criterion::Always) => taken.all = true,
                Ok(Criterion::Other(why)) | Err(why) => taken.left_out.push(why),
            }
        }
        taken
    }

    /// Terms that all have to hold.
    fn conjunction(&self, terms: &[Term<'_>], note: &mut impl FnMut(String)) -> Result<Criterion, String> {
        let mut whole = Cow::Owned(Criterion::Always);
        for term in terms {
            if term.negated {
                return Err(format!("`!` before `{}`", short(term.words)));
            }
            let criterion = self.criterion(term, note);
            whole = match (&*whole, &*criterion) {
                (_, Criterion::Other(why)) => return Err(why.clone()),
                (Criterion::Names(_), Criterion::Names(_)) => return Err("two server names at once".to_owned()),
                (Criterion::Names(_), Criterion::Hello | Criterion::Always) => whole,
                (Criterion::Hello, Criterion::Hello | Criterion::Always) => whole,
                (Criterion::Hello, Criterion::Names(_)) => criterion,
                (Criterion::Always | Criterion::Other(_), _) => criterion,
            };
        }
        Ok(whole.into_owned())
    }

    fn criterion(&self, term: &Term<'_>, note: &mut impl FnMut(String)) -> Cow<'_, Criterion> {
        let Some(name) = term.name else { return Cow::Owned(criterion(term.words, note)) };
        match (self.named.get(name), name) {
            (Some(criterion), _) => Cow::Borrowed(criterion),
            (None, "TRUE") => Cow::Owned(Criterion::Always),
            (None, _) => Cow::Owned(Criterion::Other(format!("the acl {name} is not known here"))),
        }
    }

    /// Whether a condition, with its `if` or `unless`, holds for all that is not TLS and for nothing else.
    pub(super) fn is_not_tls(&self, words: &[String]) -> bool {
        let Some((word, words)) = words.split_first() else { return false };
        let alternatives = alternatives(words);
        let [terms] = alternatives.as_slice() else { return false };
        let [term] = terms.as_slice() else { return false };
        term.negated == (word == "if") && *self.criterion(term, &mut |_| {}) == Criterion::Hello
    }

    /// Whether a condition is about the server name, understood or not.
    pub(super) fn is_about_names(&self, words: &[String]) -> bool {
        words.iter().any(|word| word.contains("ssl_sni") || self.by_name.contains(word.trim_start_matches('!')))
    }
}

/// A name, or the words between `{` and `}`.
#[derive(Debug)]
struct Term<'a> {
    negated: bool,
    /// Of a named ACL.
    name: Option<&'a str>,
    /// As it is written.
    words: &'a [String],
}

/// What `or` and `||` separate.
fn alternatives(words: &[String]) -> Vec<Vec<Term<'_>>> {
    let (mut all, mut terms, mut negated, mut rest) = (Vec::new(), Vec::new(), false, words);
    while let Some((word, behind)) = rest.split_first() {
        rest = behind;
        match word.as_str() {
            "or" | "||" => all.push(std::mem::take(&mut terms)),
            "!" => negated = !negated,
            "{" | "!{" => {
                let end = rest.iter().position(|word| word == "}").unwrap_or(rest.len());
                let words = rest.get(..end).unwrap_or_default();
                terms.push(Term { negated: negated ^ (word == "!{"), name: None, words });
                rest = rest.get(end + 1..).unwrap_or_default();
                negated = false;
            }
            name => {
                let bare = name.trim_start_matches('!');
                let negated = std::mem::take(&mut negated) ^ ((name.len() - bare.len()) % 2 == 1);
                terms.push(Term { negated, name: Some(bare), words: std::slice::from_ref(word) });
            }
        }
    }
    all.push(terms);
    // An empty alternative is a mistake, and would hold always.
    all.retain(|terms| !terms.is_empty());
    all
}

/// A criterion with its flags and values.
fn criterion(words: &[String], note: &mut impl FnMut(String)) -> Criterion {
    let other = |why: &str| Criterion::Other(format!("`{}`: {why}", short(words)));
    let Some((fetch, rest)) = words.split_first() else { return other("an empty condition") };
    if fetch == "always_true" {
        return Criterion::Always;
    }
    if HELLO.contains(&fetch.as_str()) {
        return if rest == ["1"] { Criterion::Hello } else { other("not carried over") };
    }
    if !SNI.contains(&fetch.as_str()) {
        return other("only conditions on the server name are carried over");
    }
    let (mut kind, mut rest) = ("str", rest);
    loop {
        match rest {
            [flag, more @ ..] if flag == "-i" => rest = more,
            [flag, how, more @ ..] if flag == "-m" => (kind, rest) = (how, more),
            [flag, more @ ..] if flag == "--" => {
                rest = more;
                break;
            }
            [flag, file, ..] if flag == "-f" || flag == "-M" => {
                return other(&format!("its names stand in the file {file}"));
            }
            [flag, ..] if flag.starts_with('-') => return other(&format!("the flag {flag} is not known here")),
            _ => break,
        }
    }
    if !["str", "end", "dom"].contains(&kind) {
        return other(&format!("`-m {kind}`: names are matched whole, or by their end"));
    }
    let mut names = Vec::new();
    for value in rest {
        match patterns(kind, value) {
            Some(found) => names.extend(found),
            None => note(format!("{value:?} is not a host name")),
        }
        if kind != "str" {
            let suffix = value.trim_start_matches('.');
            note(format!("`-m {kind} {value}`: *.{suffix} stands for exactly one label, deeper names need routes"));
        }
    }
    if names.is_empty() { other("no host name is in it") } else { Criterion::Names(names) }
}

fn patterns(kind: &str, value: &str) -> Option<Vec<SniPattern>> {
    let name = |text| Sni::parse(text).ok();
    if kind == "str" {
        return Some(vec![SniPattern::Exact(name(value)?)]);
    }
    match value.strip_prefix('.') {
        Some(suffix) if kind == "end" => Some(vec![SniPattern::Wildcard(name(suffix)?)]),
        _ => {
            let suffix = name(value.trim_matches('.'))?;
            Some(vec![SniPattern::Exact(suffix.clone()), SniPattern::Wildcard(suffix)])
        }
    }
}

/// As much of it as a line of text bears.
pub(super) fn short(words: &[String]) -> String {
    let mut text: String = words.iter().take(8).flat_map(|word| [word.as_str(), " "]).collect::<String>();
    text.truncate(text.trim_end().len());
    if text.chars().count() > 60 || words.len() > 8 {
        text = text.chars().take(60).chain(" ...".chars()).collect();
    }
    text
}

#[cfg(test)]
mod tests;
