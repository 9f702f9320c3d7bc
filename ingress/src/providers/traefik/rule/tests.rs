//! Rules as people write them, and rules as nobody does.

use proptest::prelude::*;

use super::*;

fn shown(text: &str) -> String {
    parse(text).map_or_else(|error| error.to_string(), |rule| rule.to_string())
}

#[test]
fn precedence_is_not_before_and_before_or() {
    assert_eq!(
        shown(
            "Host(`a.com`) || Host(`b.com`) && !Path(`/x`) || !(Method(`GET`) || Method(`PUT`)) && ClientIP(`10.0.0.0/8`)"
        ),
        "Host(`a.com`) || (Host(`b.com`) && !Path(`/x`)) || (!(Method(`GET`) || Method(`PUT`)) && ClientIP(`10.0.0.0/8`))"
    );
    assert_eq!(shown("((Host(`a.com`)))"), "Host(`a.com`)");
}

#[test]
fn spellings_of_both_versions_are_read() {
    for (text, same) in [
        ("Host(`a.com`, `b.com`)", "Host(`a.com`) || Host(`b.com`)"),
        ("host(\"A.com\")", "Host(`a.com`)"),
        ("HOSTSNI(`*`)", "HostSNI(`*`)"),
        ("Headers(`X-A`, `b`)&&HeadersRegexp(`X-B`,`c.*`)", "Header(`X-A`, `b`) && HeaderRegexp(`X-B`, `c.*`)"),
        ("Query(`a=b`)", "Query(`a`, `b`)"),
        ("Query(`a`)", "Query(`a`)"),
        ("HostRegexp(`{sub:[a-z]+}.example.com`)", "HostRegexp(`{sub:[a-z]+}.example.com`)"),
        ("Header(`k`, \"a`\\\"b\")", "Header(`k`, \"a`\\\"b\")"),
    ] {
        assert_eq!(shown(text), same);
    }
}

#[test]
fn what_is_wrong_is_told_with_its_place() {
    for (text, expected) in [
        ("", "rule, at character 1: expected a condition such as Host(`example.com`), found the end"),
        ("Host(`a.com`) Host(`b.com`)", "rule, at character 15: expected `&&` or `||`, found 'H'"),
        ("Host(`a.com`", "rule, at character 13: expected `,`, found the end"),
        ("Host(`a.com)", "rule, at character 7: this ` is never closed"),
        ("Host()", "rule, at character 1: Host needs a value"),
        ("Hots(`a.com`)", "rule, at character 1: the condition Hots is not known"),
        ("Host(`a..com`)", "rule, at character 1: \"a..com\" is not a DNS host name"),
        ("Path(`x`)", "rule, at character 1: the path \"x\" does not begin with /"),
        ("Host(`a.com`) &&", "rule, at character 17: expected a condition such as Host(`example.com`), found the end"),
    ] {
        assert_eq!(shown(text), expected, "{text}");
    }
    assert!(shown(&"!".repeat(5_000)).contains("nested deeper"), "no depth exhausts the stack");
    assert!(shown(&"(".repeat(5_000)).contains("nested deeper"));
}

fn text() -> impl Strategy<Value = String> {
    "[ -~]{0,12}"
}

fn matcher() -> impl Strategy<Value = Matcher> {
    let host = || "[a-z][a-z0-9-]{0,8}(\\.[a-z]{2,4}){1,2}".prop_filter_map("a name", |h| SniPattern::parse(&h).ok());
    prop_oneof![
        host().prop_map(Matcher::Host),
        prop::option::of(host()).prop_map(Matcher::HostSni),
        text().prop_map(Matcher::HostRegexp),
        text().prop_map(Matcher::HostSniRegexp),
        "/[a-z/]{0,8}".prop_map(Matcher::Path),
        "/[a-z/]{0,8}".prop_map(Matcher::PathPrefix),
        text().prop_map(Matcher::PathRegexp),
        text().prop_map(Matcher::Method),
        text().prop_map(Matcher::ClientIp),
        (text(), text()).prop_map(|(name, value)| Matcher::Header { name, value }),
        (text(), text()).prop_map(|(name, value)| Matcher::HeaderRegexp { name, value }),
        ("[a-z]{1,5}", prop::option::of(text())).prop_map(|(name, value)| Matcher::Query { name, value }),
    ]
}

fn rule() -> impl Strategy<Value = Rule> {
    matcher().prop_map(Rule::Match).prop_recursive(5, 40, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 2..4).prop_map(Rule::And),
            prop::collection::vec(inner.clone(), 2..4).prop_map(Rule::Or),
            inner.prop_map(|rule| Rule::Not(Box::new(rule))),
        ]
    })
}

proptest! {
    #[test]
    fn what_is_shown_is_read_as_the_same_rule(rule in rule()) {
        prop_assert_eq!(parse(&rule.to_string()), Ok(rule));
    }

    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,80}") {
        let _ = parse(&text);
    }

    #[test]
    fn no_pieces_of_rules_make_it_panic(pieces in prop::collection::vec(prop::sample::select(vec![
        "Host", "HostSNI", "Header", "(", ")", "`", "\"", "\\", ",", "&&", "||", "!", "a.com", " ", "&", "ä",
    ]), 0..30)) {
        let _ = parse(&pieces.concat());
    }
}
