//! The rule language: ``Host(`a`) && (PathPrefix(`/x`) || !Header(`k`, `v`))`` -> [`Rule`].
//!
//! `!` binds tighter than `&&`, that tighter than `||`. Names of conditions are compared without regard to case, as Traefik
//! does. Version 2's spellings are read too: several values in one condition, `Headers`, `HeadersRegexp`, ``Query(`a=b`)``.

use crate::route::SniPattern;
use crate::route::rule::{Matcher, Rule};

/// Where the rule is wrong and how. `at` counts bytes from 0.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("rule, at character {}: {message}", at + 1)]
pub struct RuleError {
    pub at: usize,
    pub message: String,
}

/// Reads a whole rule.
///
/// # Errors
/// The first fault. No text makes it panic, or recurse deeper than a fixed bound.
pub fn parse(text: &str) -> Result<Rule, RuleError> {
    if text.len() > MAX_BYTES {
        return Err(RuleError { at: MAX_BYTES, message: format!("longer than {MAX_BYTES} bytes") });
    }
    let mut parser = Parser { text, at: 0, depth: 0 };
    let rule = parser.any()?;
    match parser.peek() {
        None => Ok(rule),
        Some(c) => Err(parser.wrong(format!("expected `&&` or `||`, found {c:?}"))),
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

impl Parser<'_> {
    fn any(&mut self) -> Result<Rule, RuleError> {
        let mut parts = vec![self.all()?];
        while self.take("||") {
            parts.push(self.all()?);
        }
        Ok(one_or(parts, Rule::Or))
    }

    fn all(&mut self) -> Result<Rule, RuleError> {
        let mut parts = vec![self.one()?];
        while self.take("&&") {
            parts.push(self.one()?);
        }
        Ok(one_or(parts, Rule::And))
    }

    fn one(&mut self) -> Result<Rule, RuleError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.wrong(format!("nested deeper than {MAX_DEPTH} levels")));
        }
        let rule = if self.take("!") {
            Rule::Not(Box::new(self.one()?))
        } else if self.take("(") {
            let rule = self.any()?;
            self.expect(")")?;
            rule
        } else {
            self.condition()?
        };
        self.depth -= 1;
        Ok(rule)
    }

    fn condition(&mut self) -> Result<Rule, RuleError> {
        self.skip();
        let start = self.at;
        let rest = &self.text[start..];
        let name = &rest[..rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(rest.len())];
        if name.is_empty() {
            let found = self.peek().map_or("the end".to_owned(), |c| format!("{c:?}"));
            return Err(self.wrong(format!("expected a condition such as Host(`example.com`), found {found}")));
        }
        self.at += name.len();
        self.expect("(")?;
        let mut values = Vec::new();
        if !self.take(")") {
            loop {
                values.push(self.string()?);
                if self.take(")") {
                    break;
                }
                self.expect(",")?;
            }
        }
        matchers(name, values).map_err(|message| RuleError { at: start, message })
    }

    /// A Go string: raw between backticks, with escapes between quotes.
    fn string(&mut self) -> Result<String, RuleError> {
        if self.take("`") {
            let rest = &self.text[self.at..];
            let end = rest.find('`').ok_or_else(|| self.wrong("this ` is never closed".to_owned()))?;
            self.at += end + 1;
            return Ok(rest[..end].to_owned());
        }
        self.expect("\"")?;
        let mut value = String::new();
        let mut chars = self.text[self.at..].char_indices();
        while let Some((n, c)) = chars.next() {
            match c {
                '"' => {
                    self.at += n + 1;
                    return Ok(value);
                }
                '\\' => match chars.next() {
                    Some((_, 'n')) => value.push('\n'),
                    Some((_, 't')) => value.push('\t'),
                    Some((_, 'r')) => value.push('\r'),
                    Some((_, c @ ('"' | '\\' | '\''))) => value.push(c),
                    Some((_, c)) => return Err(self.wrong(format!("\\{c} is not understood; use backticks"))),
                    None => break,
                },
                c => value.push(c),
            }
        }
        Err(self.wrong("this \" is never closed".to_owned()))
    }

    fn skip(&mut self) {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
    }

    fn peek(&mut self) -> Option<char> {
        self.skip();
        self.text[self.at..].chars().next()
    }

    fn take(&mut self, token: &str) -> bool {
        self.skip();
        let is_next = self.text[self.at..].starts_with(token);
        if is_next {
            self.at += token.len();
        }
        is_next
    }

    fn expect(&mut self, token: &str) -> Result<(), RuleError> {
        if self.take(token) {
            return Ok(());
        }
        let found = self.peek().map_or("the end".to_owned(), |c| format!("{c:?}"));
        Err(self.wrong(format!("expected `{token}`, found {found}")))
    }

    fn wrong(&self, message: String) -> RuleError {
        RuleError { at: self.at, message }
    }
}

fn one_or(mut parts: Vec<Rule>, many: fn(Vec<Rule>) -> Rule) -> Rule {
    match parts.len() {
        1 => parts.swap_remove(0),
        _ => many(parts),
    }
}

/// Several values where one will do are alternatives.
fn matchers(name: &str, values: Vec<String>) -> Result<Rule, String> {
    let lower = name.to_ascii_lowercase();
    let each = |matcher: fn(String) -> Result<Matcher, String>| {
        if values.is_empty() {
            return Err(format!("{name} needs a value"));
        }
        let parts = values.iter().cloned().map(|value| matcher(value).map(Rule::Match));
        Ok(one_or(parts.collect::<Result<_, _>>()?, Rule::Or))
    };
    let pair = |matcher: fn(String, String) -> Matcher| match values.as_slice() {
        [key, value] => Ok(Rule::Match(matcher(key.clone(), value.clone()))),
        _ => Err(format!("{name} needs a name and a value")),
    };
    match lower.as_str() {
        "host" => each(|host| pattern(&host).map(Matcher::Host)),
        "hostsni" => each(|host| match host.as_str() {
            "*" => Ok(Matcher::HostSni(None)),
            host => pattern(host).map(|pattern| Matcher::HostSni(Some(pattern))),
        }),
        "hostregexp" => each(|text| Ok(Matcher::HostRegexp(text))),
        "hostsniregexp" => each(|text| Ok(Matcher::HostSniRegexp(text))),
        "path" => each(|text| path(text).map(Matcher::Path)),
        "pathprefix" => each(|text| path(text).map(Matcher::PathPrefix)),
        "pathregexp" => each(|text| Ok(Matcher::PathRegexp(text))),
        "method" => each(|text| Ok(Matcher::Method(text))),
        "clientip" => each(|text| Ok(Matcher::ClientIp(text))),
        "header" | "headers" => pair(|name, value| Matcher::Header { name, value }),
        "headerregexp" | "headersregexp" => pair(|name, value| Matcher::HeaderRegexp { name, value }),
        "query" => match values.as_slice() {
            [one] => Ok(Rule::Match(match one.split_once('=') {
                Some((name, value)) => Matcher::Query { name: name.to_owned(), value: Some(value.to_owned()) },
                None => Matcher::Query { name: one.clone(), value: None },
            })),
            [name, value] => Ok(Rule::Match(Matcher::Query { name: name.clone(), value: Some(value.clone()) })),
            _ => Err(format!("{name} needs a name and a value")),
        },
        _ => Err(format!("the condition {name} is not known")),
    }
}

fn pattern(host: &str) -> Result<SniPattern, String> {
    SniPattern::parse(host).map_err(|error| error.to_string())
}

fn path(text: String) -> Result<String, String> {
    if text.starts_with('/') { Ok(text) } else { Err(format!("the path {text:?} does not begin with /")) }
}

const MAX_BYTES: usize = 64 * 1024;
const MAX_DEPTH: usize = 100;

#[cfg(test)]
mod tests;
