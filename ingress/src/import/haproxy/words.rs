//! A line of HAProxy's configuration language -> its words (HAProxy's configuration manual, section 2.2).

use std::iter::Peekable;
use std::str::Chars;

/// Which of the files, and which line of it, from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct At {
    pub(super) file: usize,
    pub(super) line: usize,
}

/// A line that says something: there is at least one word.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) at: At,
    pub(super) words: Vec<String>,
    /// A word of it holds an environment variable, as it was written.
    pub(super) variable: bool,
}

/// A quote was opened and not closed: nobody knows what was meant.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OpenQuote;

/// `None`: an empty line, or a comment.
pub(super) fn line(at: At, text: &str) -> Result<Option<Line>, OpenQuote> {
    let (mut words, mut variable) = (Vec::new(), false);
    // Between words there is none; an empty pair of quotes is one.
    let mut word: Option<String> = None;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '#' => break,
            c if c.is_ascii_whitespace() => words.extend(word.take()),
            '\\' => escape(&mut chars, word.get_or_insert_default()),
            '\'' => single(&mut chars, word.get_or_insert_default())?,
            '"' => variable |= double(&mut chars, word.get_or_insert_default())?,
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok((!words.is_empty()).then_some(Line { at, words, variable }))
}

fn single(chars: &mut Peekable<Chars<'_>>, word: &mut String) -> Result<(), OpenQuote> {
    for c in chars {
        match c {
            '\'' => return Ok(()),
            c => word.push(c),
        }
    }
    Err(OpenQuote)
}

/// Whether a variable is in it: they count in double quotes only.
fn double(chars: &mut Peekable<Chars<'_>>, word: &mut String) -> Result<bool, OpenQuote> {
    let mut variable = false;
    while let Some(c) = chars.next() {
        match c {
            '"' => return Ok(variable),
            '\\' if chars.next_if_eq(&'$').is_some() => word.push('$'),
            '\\' => escape(chars, word),
            c => {
                let names = |c: &char| c.is_ascii_alphabetic() || "_{".contains(*c);
                variable |= c == '$' && chars.peek().is_some_and(names);
                word.push(c);
            }
        }
    }
    Err(OpenQuote)
}

/// What follows a backslash. Before any other character it stands for itself, as regular expressions need it.
fn escape(chars: &mut Peekable<Chars<'_>>, word: &mut String) {
    match chars.next() {
        Some(c @ (' ' | '#' | '\\' | '\'' | '"')) => word.push(c),
        Some('n') => word.push('\n'),
        Some('r') => word.push('\r'),
        Some('t') => word.push('\t'),
        Some('x') => {
            let ahead: String = chars.clone().take(2).collect();
            match u8::from_str_radix(&ahead, 16) {
                Ok(byte) if ahead.len() == 2 => {
                    word.push(char::from(byte));
                    // Both are digits: one byte each.
                    chars.nth(1);
                }
                Ok(_) | Err(_) => word.push_str("\\x"),
            }
        }
        Some(c) => word.extend(['\\', c]),
        None => word.push('\\'),
    }
}

#[cfg(test)]
mod tests {
    use super::{At, OpenQuote, line};

    fn words(text: &str) -> Vec<String> {
        line(At::default(), text).expect("closed quotes").map(|line| line.words).unwrap_or_default()
    }

    #[test]
    fn blanks_separate_words_and_a_hash_ends_the_line() {
        assert_eq!(words("  bind\t:443  # all"), ["bind", ":443"]);
        assert_eq!(words("# only a comment"), [""; 0]);
        assert_eq!(words("log a\\#b 'c#d'"), ["log", "a#b", "c#d"]);
    }

    #[test]
    fn quotes_and_backslashes_keep_blanks_in_a_word() {
        assert_eq!(words(r#"acl a\ b "c d"'e f' """#), ["acl", "a b", "c de f", ""]);
        assert_eq!(words(r"x \x41\x4 ^a\.b$ \t'\x41' \"), ["x", r"A\x4", r"^a\.b$", "\t\\x41", "\\"]);
    }

    #[test]
    fn a_variable_counts_in_double_quotes_only() {
        let variable = |text| line(At::default(), text).expect("closed quotes").expect("words").variable;
        assert!(variable(r#"bind "${HOST}:443""#) && variable(r#"bind "$HOST""#));
        assert!(!variable("bind $HOST") && !variable("bind '$HOST'"));
        assert!(!variable(r#"bind "\$HOST""#) && !variable(r#"acl "a$""#));
    }

    #[test]
    fn an_open_quote_is_an_error() {
        assert_eq!(line(At::default(), "bind 'x"), Err(OpenQuote));
        assert_eq!(line(At::default(), "bind \"x\\\""), Err(OpenQuote));
    }
}
