//! `help`, and what is said to a word that is none: HAProxy's layout, our commands.

use super::commands::{KEYWORDS, Keyword};
use crate::config::SocketLevel;

/// What may be said at this level; with words, what begins like them.
pub(super) fn help(words: &[String], level: SocketLevel) -> String {
    let matching = matching(words, level);
    let listed = if matching.is_empty() { allowed(level) } else { matching };
    "The following commands are valid at this level:\n".to_owned() + &list(&listed)
}

pub(super) fn unknown(words: &[String], level: SocketLevel) -> String {
    let matching = matching(words, level);
    match matching.is_empty() {
        true => {
            "Unknown command. Please enter one of the following commands only:\n".to_owned() + &list(&allowed(level))
        }
        false => {
            "Unknown command, but maybe one of the following ones is a better match:\n".to_owned() + &list(&matching)
        }
    }
}

fn allowed(level: SocketLevel) -> Vec<&'static Keyword> {
    KEYWORDS.iter().filter(|keyword| keyword.level <= level).collect()
}

/// Those that share the most leading words with what was said, and at least one. The session's own stand at the end.
fn matching(words: &[String], level: SocketLevel) -> Vec<&'static Keyword> {
    let shared =
        |keyword: &Keyword| keyword.words.iter().zip(words).take_while(|(keyword, word)| keyword == word).count();
    let allowed = allowed(level);
    let most = allowed.iter().map(|keyword| shared(keyword)).max().unwrap_or_default();
    if most == 0 {
        return Vec::new();
    }
    let is_of_session = |keyword: &Keyword| matches!(keyword.words, ["help"] | ["prompt"] | ["quit"]);
    allowed.into_iter().filter(|keyword| shared(keyword) == most || is_of_session(keyword)).collect()
}

fn list(keywords: &[&Keyword]) -> String {
    keywords.iter().map(|keyword| format!("  {:<40}: {}\n", keyword.usage, keyword.does)).collect()
}
