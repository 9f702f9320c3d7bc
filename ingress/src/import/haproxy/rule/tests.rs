use super::{Acls, Taken};

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn taken(condition: &str) -> (Vec<String>, Taken) {
    let mut acls = Acls::default();
    for acl in [
        "app req.ssl_sni -i a.example.com",
        "app req_ssl_sni B.example.com",
        "tls req.ssl_hello_type 1",
        "lan src 10.0.0.0/8",
    ] {
        acls.define(&words(acl), &mut |note| panic!("{note}"));
    }
    let taken = acls.condition(&words(condition), &mut |_| {});
    (taken.names.iter().map(ToString::to_string).collect(), taken)
}

#[test]
fn names_come_from_acls_in_all_their_spellings() {
    let both = ["a.example.com", "b.example.com"];
    for condition in
        ["if app", "if app tls", "if tls app TRUE", "if { req.ssl_sni -i -m str -- a.example.com b.example.com }"]
    {
        let (names, taken) = taken(condition);
        assert_eq!(names, both, "{condition}");
        assert!(taken.left_out.is_empty() && !taken.all && !taken.tls, "{taken:?}");
    }
    let (names, _) = taken("if { req.ssl_sni x.example.com } or app || { req.ssl_sni -m end .y.example.com }");
    assert_eq!(names, ["x.example.com", "a.example.com", "b.example.com", "*.y.example.com"]);
    let (names, _) = taken("if { req.ssl_sni,lower -m dom example.com }");
    assert_eq!(names, ["example.com", "*.example.com"]);
}

#[test]
fn what_asks_for_more_than_a_name_is_left_out_with_the_reason() {
    for (condition, why) in [
        ("unless app", "unless"),
        ("if !app", "`!`"),
        ("if ! { req.ssl_sni a.example.com }", "`!`"),
        ("if app lan", "src 10.0.0.0/8"),
        ("if app { req.ssl_sni c.example.com }", "two server names"),
        ("if { req.ssl_sni -m reg ^a }", "-m reg"),
        ("if { req.ssl_sni -f names.lst }", "names.lst"),
        ("if nobody", "nobody"),
        ("if {", "empty"),
    ] {
        let (names, taken) = taken(condition);
        assert!(names.is_empty() && !taken.all && !taken.tls, "{condition}: {taken:?}");
        assert!(taken.left_out.iter().any(|told| told.contains(why)), "{condition}: {taken:?}");
    }
}

#[test]
fn conditions_without_a_name_take_everything_or_all_tls() {
    assert!(taken("").1.all && taken("if TRUE").1.all && taken("if { always_true }").1.all);
    assert!(taken("if tls").1.tls && taken("if { req.ssl_hello_type 1 } TRUE").1.tls);
}

#[test]
fn a_rejection_of_what_is_not_tls_is_known() {
    let mut acls = Acls::default();
    acls.define(&words("tls req.ssl_hello_type 1"), &mut |_| {});
    for condition in ["if !tls", "unless tls", "if ! { req.ssl_hello_type 1 }", "if !{ req.ssl_hello_type 1 }"] {
        assert!(acls.is_not_tls(&words(condition)), "{condition}");
    }
    for condition in ["", "if tls", "unless !tls", "if !tls or !tls", "if !lan"] {
        assert!(!acls.is_not_tls(&words(condition)), "{condition}");
    }
}
