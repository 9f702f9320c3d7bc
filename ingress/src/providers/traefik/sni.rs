//! Which server names a TCP rule stands for.

use crate::route::SniPattern;
use crate::route::rule::{Matcher, Rule};

/// What a rule lets through.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Names {
    /// Everything, with a server name or without.
    Any,
    Only(Vec<SniPattern>),
}

/// The error says what of the rule cannot be served.
pub(super) fn names(rule: &Rule) -> Result<Names, String> {
    match rule {
        Rule::Match(Matcher::HostSni(None)) => Ok(Names::Any),
        Rule::Match(Matcher::HostSni(Some(pattern))) => Ok(Names::Only(vec![pattern.clone()])),
        Rule::Match(Matcher::HostSniRegexp(text)) => match one_label(text) {
            Some(pattern) => Ok(Names::Only(vec![pattern])),
            None => Err(format!("HostSNIRegexp(`{text}`) is more than a wildcard for one label")),
        },
        Rule::Match(matcher) => Err(format!("the condition {} is not served on TCP", matcher.name())),
        Rule::Or(parts) => {
            let mut all = Vec::new();
            for part in parts {
                match names(part)? {
                    Names::Any => return Ok(Names::Any),
                    Names::Only(patterns) => {
                        all.extend(patterns.into_iter().filter(|p| !all.contains(p)).collect::<Vec<_>>())
                    }
                }
            }
            Ok(Names::Only(all))
        }
        Rule::And(_) => Err("`&&` is not served on TCP".to_owned()),
        Rule::Not(_) => Err("`!` is not served on TCP".to_owned()),
    }
}

/// `^[^.]+\.example\.com$`, or version 2's `{sub:[^.]+}.example.com`: what `*.example.com` says too.
fn one_label(regexp: &str) -> Option<SniPattern> {
    const LABELS: [&str; 4] = ["[^.]+", "[^\\.]+", "[a-zA-Z0-9-]+", "[a-z0-9-]+"];
    let suffix = if let Some(rest) = regexp.strip_prefix('{') {
        let (variable, suffix) = rest.split_once('}')?;
        let (_, label) = variable.split_once(':')?;
        LABELS.contains(&label).then_some(suffix)?.strip_prefix('.')?.to_owned()
    } else {
        let rest = regexp.strip_prefix('^')?.strip_suffix('$')?;
        let suffix = LABELS.iter().find_map(|label| rest.strip_prefix(label))?;
        let suffix = suffix.strip_prefix("\\.")?;
        // Any other dot stands for any character.
        let unescaped = suffix.replace("\\.", "\u{1}");
        (!unescaped.contains('.')).then(|| unescaped.replace('\u{1}', "."))?
    };
    SniPattern::parse(&format!("*.{suffix}")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::providers::traefik::parse_rule;

    fn read(rule: &str) -> Result<Vec<String>, String> {
        match names(&parse_rule(rule).expect("a test rule"))? {
            Names::Any => Ok(vec!["any".to_owned()]),
            Names::Only(patterns) => Ok(patterns.iter().map(ToString::to_string).collect()),
        }
    }

    #[test]
    fn alternatives_are_collected_and_a_star_takes_all() {
        assert_eq!(read("HostSNI(`a.com`) || HostSNI(`*.b.com`, `a.com`)"), Ok(vec!["a.com".into(), "*.b.com".into()]));
        assert_eq!(read("HostSNI(`a.com`) || HostSNI(`*`)"), Ok(vec!["any".into()]));
    }

    #[test]
    fn a_regular_expression_for_one_label_is_a_wildcard_and_no_other_is() {
        for same in ["^[^.]+\\.example\\.com$", "^[a-z0-9-]+\\.example\\.com$", "{sub:[^.]+}.example.com"] {
            assert_eq!(read(&format!("HostSNIRegexp(`{same}`)")), Ok(vec!["*.example.com".into()]), "{same}");
        }
        for other in
            ["^.+\\.example\\.com$", "^[^.]+.example.com$", "[^.]+\\.example\\.com", "^a[^.]+\\.example\\.com$"]
        {
            assert!(read(&format!("HostSNIRegexp(`{other}`)")).is_err(), "{other}");
        }
    }

    #[test]
    fn what_cannot_be_told_from_a_server_name_is_named() {
        for rule in
            ["HostSNI(`a.com`) && ClientIP(`10.0.0.0/8`)", "!HostSNI(`a.com`)", "ClientIP(`10.0.0.1`)", "Host(`a.com`)"]
        {
            assert!(read(rule).is_err(), "{rule}");
        }
    }
}
