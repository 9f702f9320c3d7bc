//! A line of input: commands between `;`, words between blanks, `\\` before a character that is meant as it stands. Pure.

/// The commands of a line, as words. HAProxy takes an empty one for a command that it does not know; so do we.
pub(super) fn commands(line: &str) -> Vec<Vec<String>> {
    let mut commands = vec![Vec::new()];
    let mut word: Option<String> = None;
    let mut chars = line.chars();
    loop {
        let next = chars.next();
        let (taken, ends) = match next {
            Some('\\') => (chars.next(), false),
            Some(c) if c.is_ascii_whitespace() || c == ';' => (None, true),
            Some(c) => (Some(c), false),
            None => (None, true),
        };
        if let Some(c) = taken {
            word.get_or_insert_default().push(c);
        }
        if ends
            && let Some(word) = word.take()
            && let Some(command) = commands.last_mut()
        {
            command.push(word);
        }
        match next {
            Some(';') => commands.push(Vec::new()),
            Some(_) => {}
            None => break,
        }
    }
    // `a;` is one command, `;` is one that nobody knows.
    if commands.len() > 1 && commands.last().is_some_and(Vec::is_empty) {
        commands.pop();
    }
    commands
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_line_is_commands_and_words() {
        assert_eq!(commands("show version"), [["show", "version"]]);
        assert_eq!(commands("  show \t version  ;show backend;"), [["show", "version"], ["show", "backend"]]);
        assert_eq!(commands("a\\ b\\;c"), [["a b;c"]]);
        assert_eq!(commands(""), [Vec::<String>::new()]);
        assert_eq!(commands(";"), [Vec::<String>::new()]);
        assert_eq!(commands("show stat\r"), [["show", "stat"]]);
    }

    proptest! {
        #[test]
        fn no_line_makes_it_panic(line in ".{0,80}") {
            prop_assert!(!commands(&line).is_empty());
        }
    }
}
