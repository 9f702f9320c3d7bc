//! The keys of hooks.

use std::path::Path;
use std::time::Duration;

use crate::config::{HookConfig, HookTarget, WebhookBody, load, parse};
use crate::events::EventKind;

fn text(hook: &str) -> String {
    format!("listeners: {{tls: {{bind: ':443'}}}}\nhooks:\n  chat:\n{hook}\n")
}

fn hook(hook: &str) -> HookConfig {
    match parse(&text(hook), Path::new("f.yaml")) {
        Ok(mut config) => config.hooks.remove("chat").expect("it is written"),
        Err(problems) => panic!("{problems:#}"),
    }
}

#[test]
fn a_hook_hears_all_of_everything_unless_it_says_otherwise() {
    let plain = hook("    webhook: {url: 'https://chat.example.com/services/T0/secret?x=1'}");
    assert!(EventKind::ALL.iter().all(|kind| plain.filter.wants(*kind)));
    let times = (plain.gather, plain.retry_for, plain.queue);
    assert_eq!(times, (Duration::from_secs(1), Duration::from_secs(3600), 1000));
    assert_eq!(plain.target.place(), "https://chat.example.com", "the rest of a URL may be secret");
    let HookTarget::Webhook(webhook) = &plain.target else { panic!("{plain:?}") };
    assert_eq!((&webhook.body, webhook.timeout), (&WebhookBody::Event, Duration::from_secs(10)));

    let narrow = hook(
        "    command: {argv: [/usr/local/bin/page, --team, web], timeout: 5s}\n    events: [backend_down, backend_up]\n    \
         pools: [web, '*@platform']\n    gather: 0s",
    );
    assert!(narrow.filter.wants(EventKind::BackendUp) && !narrow.filter.wants(EventKind::RouteAdded));
    assert_eq!((narrow.target.kind(), narrow.target.place().as_str()), ("command", "/usr/local/bin/page"));
}

#[test]
fn a_template_is_tried_before_it_is_used() {
    let good =
        hook("    webhook:\n      url: http://10.0.0.9/\n      template: |\n        {\"text\": {{ text|tojson }}}");
    let HookTarget::Webhook(webhook) = good.target else { panic!("{good:?}") };
    assert!(matches!(webhook.body, WebhookBody::Template(_)));
}

#[test]
fn every_problem_of_a_hook_is_named_with_its_place() {
    let mut wrong = Vec::new();
    for (written, expected) in [
        ("    events: [backend_down]", "4:5: error: hooks.chat: this hook tells nobody"),
        (
            "    webhook: {url: http://10.0.0.9/}\n    command: {argv: [/bin/true]}",
            "5:5: error: hooks.chat.command: a hook has one target",
        ),
        ("    webhook: {}", "4:14: error: hooks.chat.webhook: write `url: https://...`"),
        (
            "    webhook: {url: http://10.0.0.9/, url_file: /x}",
            "4:38: error: hooks.chat.webhook.url_file: a webhook has one URL",
        ),
        (
            "    webhook: {url: http://10.0.0.9/, ca_file: /x}",
            "4:20: error: hooks.chat.webhook.url: `ca_file` has no meaning",
        ),
        (
            "    webhook: {url: http://10.0.0.9/, secret: {}}",
            "4:46: error: hooks.chat.webhook.secret: write `file: /path`",
        ),
        ("    command: {argv: []}", "4:21: error: hooks.chat.command.argv: the list is empty; name a program"),
        ("    command: {argv: [page]}", "4:22: error: hooks.chat.command.argv[0]: write the program's absolute path"),
        (
            "    command: {argv: [/bin/true]}\n    events: [backend_dwon]",
            "5:14: error: hooks.chat.events[0]: unknown value \"backend_dwon\"; did you mean \"backend_down\"?",
        ),
        (
            "    command: {argv: [/bin/true]}\n    events: [test]",
            "5:14: error: hooks.chat.events[0]: unknown value \"test\"",
        ),
        (
            "    command: {argv: [/bin/true]}\n    events: [route_added]\n    pools: [web]",
            "6:5: error: hooks.chat.pools: `events` names nothing that this could be about",
        ),
        (
            "    command: {argv: [/bin/true]}\n    pools: ['[a']",
            "5:13: error: hooks.chat.pools[0]: \"[a\" is not a name or pattern: ",
        ),
        (
            "    webhook:\n      url: http://10.0.0.9/\n      format: slack\n      template: '{{ text|tojson }}'",
            "6:7: error: hooks.chat.webhook.format: `template` takes its place",
        ),
        (
            "    webhook:\n      url: http://10.0.0.9/\n      template: '{\"text\": {{ txt|tojson }}}'",
            "6:17: error: hooks.chat.webhook.template: line 1, column 17 of the template: for the event backend_down: `tojson`: what stands before it has no value",
        ),
    ] {
        let problems = parse(&text(written), Path::new("f.yaml")).expect_err(written).to_string();
        if !problems.contains(&format!("f.yaml:{expected}")) {
            wrong.push(format!("{written}\nexpected {expected}\nfound    {problems}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn what_this_host_lacks_is_a_warning() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("ingress.yaml");
    let hooks = "    command: {argv: [/nonexistent/page]}\n  signed:\n    webhook: {url: 'https://chat.example.com', secret: {env: NO_SUCH_SECRET}}";
    std::fs::write(&path, text(hooks)).expect("a file");
    let warnings = load(&path).expect("accepted").warnings.to_string();
    assert!(warnings.contains("4:21: warning: hooks.chat.command.argv: /nonexistent/page is no file"), "{warnings}");
    assert!(
        warnings.contains("6:62: warning: hooks.signed.webhook.secret.env: the environment has no NO_SUCH_SECRET"),
        "{warnings}"
    );
}
