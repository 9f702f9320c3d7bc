use std::process::ExitCode;

use clap::CommandFactory;
use clap::error::ErrorKind;

use super::*;
use crate::admin::api::FlowList;
use crate::admin::fixture::{Daemon, flow};
use crate::admin::routes::RouteView;
use crate::admin::status::Status;
use crate::control::state::{Change, Changes};
use crate::flow::FlowCommand;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split(' '))
}

/// Runs a verb as `main` does, against a daemon of fakes, and gives what it printed.
fn printed(verb: impl FnOnce(&Global, &mut Vec<u8>) -> Outcome, global: &Global) -> Result<String, Failure> {
    let mut out = Vec::new();
    verb(global, &mut out)?;
    Ok(String::from_utf8(out).expect("UTF-8"))
}

fn global(socket: &Path, output: Output) -> Global {
    Global { config: "/nonexistent/ingress.yaml".into(), output, socket: Some(socket.to_owned()) }
}

/// The CLI blocks, the fakes are async: a runtime of its own serves them.
fn with_daemon<T>(test: impl FnOnce(&Daemon, &tokio::runtime::Runtime) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime");
    let daemon = runtime.block_on(async { Daemon::start(None) });
    test(&daemon, &runtime)
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn global_options_stand_before_or_after_the_verb() {
    for line in ["ingress --output json status", "ingress status --output json"] {
        assert!(parse(line).expect("parses").global.json(), "{line}");
    }
    let defaults = parse("ingress status").expect("parses").global;
    assert_eq!(defaults.config, Path::new("/etc/ingress/ingress.yaml"));
}

#[test]
fn a_wrong_command_line_exits_with_2() {
    for line in ["ingress", "ingress stauts", "ingress status --outptu json", "ingress flows --mode fast"] {
        let error = parse(line).expect_err(line);
        assert_eq!(error.exit_code(), 2, "{line}");
    }
    assert_eq!(parse("ingress --help").expect_err("help").kind(), ErrorKind::DisplayHelp);
}

#[test]
fn failures_exit_with_the_code_of_their_kind() {
    assert_eq!(Failure::Config("broken".into()).report(), ExitCode::from(2));
    assert_eq!(Failure::Usage("what?".into()).report(), ExitCode::from(2));
    assert_eq!(Failure::Runtime(anyhow::anyhow!("no")).report(), ExitCode::from(1));
    let reader_left = io::Error::from(io::ErrorKind::BrokenPipe);
    assert_eq!(Failure::from(reader_left).report(), ExitCode::SUCCESS);
}

#[test]
fn status_reads_well_and_says_what_is_wrong() {
    let text = with_daemon(|daemon, _| {
        daemon.config.send_modify(|config| config.last_error = Some("ingress.yaml:3:1: unknown key".into()));
        let show = |global: &Global, out: &mut Vec<u8>| status::show(&ask(global)?, global, out);
        printed(show, &global(&daemon.socket, Output::Text)).expect("status")
    });
    for line in [
        "kernel   kernel, 1 of 65,536 slots in use",
        "           ingress.yaml:3:1: unknown key",
        "  open now   3: 1 kernel, 2 relay",
        "  handed off 1: 50.0 % of eligible, 33.3 % of all",
        "  relayed    2: local 1, window 1",
        "  refused    1: unknown_sni 1",
        "  spare is degraded for 12s: 192.0.2.1:8443: address in use",
        "  app   1 of 1 backend  -            0",
    ] {
        assert!(text.lines().any(|l| l == line), "no line {line:?} in\n{text}");
    }
}

#[test]
fn json_output_is_the_documented_type() {
    with_daemon(|daemon, _| {
        let global = global(&daemon.socket, Output::Json);
        let show = |global: &Global, out: &mut Vec<u8>| status::show(&ask(global)?, global, out);
        let status: Status = serde_json::from_str(&printed(show, &global).expect("status")).expect("a Status");
        assert_eq!(status.pools.len(), 1);
    });
}

#[test]
fn flows_are_listed_with_their_filter_applied() {
    let text = with_daemon(|daemon, _| {
        let Verb::Flows(args) = parse("ingress flows --sni APP.example.com").expect("parses").verb else { panic!() };
        printed(|g, out| flows::run(*args, g, out), &global(&daemon.socket, Output::Text)).expect("flows")
    });
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 4, "{text}");
    assert!(lines[0].starts_with("ID  MODE    CLIENT"), "{text}");
    assert!(lines[1].contains("relay") && lines[1].ends_with("local"), "{text}");
    assert!(lines[2].contains("2.0 MB"), "{text}");
    assert_eq!(lines[3], "2 connections");
}

#[test]
fn a_cut_list_says_that_it_is_cut() {
    let list = FlowList { total: 1_234, flows: vec![flow(1, "kernel", "app.example.com")] };
    let mut text = Vec::new();
    flows::write(&mut text, &list, None).expect("a Vec takes all");
    let text = String::from_utf8(text).expect("UTF-8");
    assert!(text.ends_with("1 of 1,234 shown; --limit 0 shows all, filters narrow them down\n"), "{text}");
}

#[test]
fn kill_needs_a_filter_or_all_before_it_even_asks() {
    let Verb::Flows(args) = parse("ingress flows kill").expect("parses").verb else { panic!() };
    let nowhere = global(Path::new("/nonexistent/admin.sock"), Output::Text);
    let failure = printed(|g, out| flows::run(*args, g, out), &nowhere).expect_err("refused");
    assert!(matches!(failure, Failure::Usage(_)), "{failure:?}");
}

#[test]
fn kill_sends_its_filter_and_says_how_many_ended() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime");
    let mut daemon = runtime.block_on(async { Daemon::start(None) });
    let global = global(&daemon.socket, Output::Text);
    let command = runtime.spawn(async move {
        let FlowCommand::Cut { filter, reason: _, done } = daemon.commands.recv().await.expect("a command");
        done.expect("somebody waits").send(2).expect("still waits");
        (filter, daemon)
    });
    let Verb::Flows(args) = parse("ingress flows kill --backend web-1").expect("parses").verb else { panic!() };
    assert_eq!(printed(|g, out| flows::run(*args, g, out), &global).expect("killed"), "2 connections ended\n");
    let (filter, _daemon) = runtime.block_on(command).expect("no panic");
    assert_eq!(filter.backend.as_deref(), Some("web-1"));
}

#[test]
fn a_refused_reload_is_a_configuration_error() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime");
    let mut daemon = runtime.block_on(async { Daemon::start(None) });
    let global = global(&daemon.socket, Output::Text);
    let control = runtime.spawn(async move {
        let request = daemon.reloads.recv().await.expect("a request");
        request.done.send(Err("ingress.yaml:3:1: unknown key".into())).expect("still waits");
        daemon
    });
    let verb = |g: &Global, out: &mut Vec<u8>| reload(&ask(g)?, g, out);
    let Err(Failure::Config(message)) = printed(verb, &global) else { panic!("not a configuration error") };
    assert!(message.starts_with("ingress.yaml:3:1: unknown key\n"), "{message}");
    runtime.block_on(control).expect("no panic");
}

#[test]
fn without_a_daemon_the_message_names_the_socket_and_what_to_do() {
    let show = |g: &Global, out: &mut Vec<u8>| status::show(&ask(g)?, g, out);
    let nowhere = global(Path::new("/nonexistent/admin.sock"), Output::Text);
    let Err(Failure::Runtime(error)) = printed(show, &nowhere) else { panic!("no daemon, no error") };
    let message = format!("{error:#}");
    assert!(message.contains("/nonexistent/admin.sock") && message.contains("systemctl start ingress"), "{message}");
}

#[test]
fn pools_show_their_backends() {
    let text = with_daemon(|daemon, _| {
        let show = |g: &Global, out: &mut Vec<u8>| pools::show(&ask(g)?, g, out);
        printed(show, &global(&daemon.socket, Output::Text)).expect("pools")
    });
    assert!(text.starts_with("app: round_robin, PROXY none, handoff always, checks none, on_down keep\n"), "{text}");
    assert!(text.contains("192.0.2.7:443  10.0.0."), "{text}");
}

#[test]
fn detach_says_what_it_removed_and_needs_no_good_configuration() {
    fn two(kernel: &KernelConfig) -> anyhow::Result<Vec<String>> {
        assert_eq!(kernel, &KernelConfig::default());
        Ok(vec!["link on eth0".into(), "/sys/fs/bpf/ingress".into()])
    }
    let nowhere = global(Path::new("/nonexistent/admin.sock"), Output::Text);
    let text = printed(|g, out| local::detach(two, g, out), &nowhere).expect("detached");
    assert_eq!(text, "removed link on eth0\nremoved /sys/fs/bpf/ingress\n");
}

#[test]
fn check_of_a_missing_file_is_a_configuration_error_that_names_it() {
    let nowhere = global(Path::new("/nonexistent/admin.sock"), Output::Text);
    let Err(Failure::Config(message)) = printed(local::check, &nowhere) else { panic!("no configuration error") };
    assert!(message.contains("/nonexistent/ingress.yaml"), "{message}");
}

#[test]
fn check_says_what_is_wrong_for_people_and_for_programs() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let config = dir.path().join("ingress.yaml");
    std::fs::write(&config, "listners: {}\n").expect("write");
    let global = |output| Global { config: config.clone(), output, socket: None };
    let Err(Failure::Config(text)) = printed(local::check, &global(Output::Text)) else { panic!("accepted") };
    assert!(text.contains("ingress.yaml:1:1"), "{text}");
    let mut out = Vec::new();
    assert!(matches!(local::check(&global(Output::Json), &mut out), Err(Failure::Silent(2))));
    let json: serde_json::Value = serde_json::from_slice(&out).expect("JSON");
    assert_eq!(json["ok"], false);
    assert_eq!(json["problems"][0]["line"], 1, "{json}");
}

#[test]
fn routes_name_what_is_served_and_what_is_not() {
    let view = |matches: &str, why: Option<&str>| RouteView {
        matches: matches.into(),
        kind: "sni".into(),
        route: format!("{matches}@nodes"),
        provider: "nodes".into(),
        owner: None,
        lease: None,
        listeners: vec![],
        pool: Some("app@nodes".into()),
        up: Some(2),
        state: if why.is_some() { "conflict" } else { "served" }.into(),
        why: why.map(str::to_owned),
    };
    let mut out = Vec::new();
    let list = [view("a.example.com", None), view("b.example.com", Some("b.example.com belongs to route b"))];
    routes::write(&mut out, &list).expect("a Vec takes all");
    let expected = "\
FOR            KIND  ROUTE                LISTENERS  POOL       UP  PROVIDER
a.example.com  sni   a.example.com@nodes  all        app@nodes   2  nodes

not served: 1 item
  nodes: b.example.com@nodes b.example.com: b.example.com belongs to route b
";
    assert_eq!(String::from_utf8(out).expect("UTF-8"), expected);
}

#[test]
fn a_dry_run_marks_what_comes_what_goes_and_what_changes() {
    let change = |before: Option<&str>, after: Option<&str>| Change {
        what: "pool".into(),
        name: "app".into(),
        before: before.map(str::to_owned),
        after: after.map(str::to_owned),
    };
    let changes = Changes {
        changes: vec![
            change(Some("a"), None),
            change(None, Some("b")),
            change(Some("a"), Some("b")),
            change(Some("a"), Some("a")),
        ],
        unserved: vec!["tcp router x: no".into()],
        warnings: vec![],
    };
    let mut out = Vec::new();
    diff::write(&mut out, &changes).expect("a Vec takes all");
    let expected = "\
- pool app: a
+ pool app: b
~ pool app: a  =>  b
~ pool app: other settings
not served: tcp router x: no
4 changes would take effect; nothing was changed
";
    assert_eq!(String::from_utf8(out).expect("UTF-8"), expected);
}

#[test]
fn import_prints_a_configuration_and_says_whether_it_is_one() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let file = dir.path().join("haproxy.cfg");
    let import = |text: &str, output| {
        std::fs::write(&file, text).expect("write");
        let words = ["ingress", "import", "haproxy", file.to_str().expect("plain name")];
        let Verb::Import(args) = Cli::try_parse_from(words).expect("a command line").verb else { panic!("not import") };
        let mut out = Vec::new();
        let global = global(Path::new("/nonexistent/admin.sock"), output);
        (import::run(args, &global, &mut out), String::from_utf8(out).expect("UTF-8"))
    };
    let good = "listen a\n bind :443\n server s 10.0.0.1:443\n odd\n";
    let (outcome, text) = import(good, Output::Json);
    assert!(outcome.is_ok(), "{outcome:?}");
    let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert!(json["config"].as_str().is_some_and(|config| config.contains("protocol: tcp")), "{json}");
    assert_eq!(json["left_out"][0]["place"], format!("{}:4", file.display()), "{json}");

    let (outcome, text) = import("frontend a\n bind :80\n mode http\n", Output::Text);
    assert!(matches!(outcome, Err(Failure::Runtime(_))), "{outcome:?}");
    assert!(text.contains("needs HTTP"), "{text}");

    let (outcome, text) = import("frontend 'a\n", Output::Text);
    assert!(matches!(outcome, Err(Failure::Config(why)) if why.contains("haproxy.cfg:1: a quote")));
    assert!(text.is_empty(), "{text}");
}

#[test]
fn a_backend_is_drained_by_its_name() {
    with_daemon(|daemon, _| {
        let global = global(&daemon.socket, Output::Text);
        let say = |line: &str| {
            let Verb::Pools(args) = parse(line).expect("parses").verb else { panic!() };
            printed(|g, out| pools::run(args, &ask(g)?, g, out), &global)
        };
        let drained = say("ingress pools drain app/192.0.2.7:443").expect("drained");
        assert_eq!(drained, "app/192.0.2.7:443: drain: no new connections; 2 connections open\n");
        let weighted = say("ingress pools weight app/192.0.2.7:443 50%").expect("weighted");
        assert_eq!(weighted, "app/192.0.2.7:443: ready, weight 50%: takes new connections\n");
        let unknown = say("ingress pools drain wbe/192.0.2.7:443").expect_err("no such pool");
        assert!(matches!(&unknown, Failure::Runtime(error) if format!("{error:#}").contains("there is no pool wbe")));
        assert!(matches!(say("ingress pools maint app"), Err(Failure::Usage(_))));
    });
    assert_eq!(parse("ingress pools weight app/b 257").expect_err("too heavy").exit_code(), 2);
}
