//! Rules of admission that could not hold are told, and so are those that would hit the host itself.

use super::{SMALLEST, problems};
use crate::config::{Severity, parse};

fn warnings(section: &str) -> Vec<String> {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), format!("{SMALLEST}{section}")).expect("it can be written");
    let loaded = crate::config::load(file.path()).expect("the file is right");
    loaded.warnings.iter().filter(|p| p.severity == Severity::Warning).map(ToString::to_string).collect()
}

#[test]
fn rules_that_could_not_hold_are_refused() {
    for (section, expected) in [
        ("admission: {private_ports: [9876]}", "no interface is public"),
        ("interfaces: {eth0: {side: private}}\nadmission: {private_ports: [9876]}", "no interface is public"),
        (
            "interfaces: {eth0: {side: public}}\nadmission: {private_ports: [20001]}",
            "20001 is one of kernel.port_range",
        ),
        ("interfaces: {eth0: {side: public}}\nadmission: {private_ports: [0]}", "a whole number from 1 to 65535"),
        ("interfaces: {eth0: {side: private, xdp: native}}", "nothing is judged on a `private` interface"),
        ("interfaces: {eth0: {xdp: native}}", "side"),
        ("interfaces: {eth0: {side: inside}}", "unknown value"),
        ("admission: {deny: [10.0.0.1/8]}", "did you mean 10.0.0.0/8"),
        ("admission: {new_connections_per_source: {rate: 0}}", "a whole number from 1 to 1000000"),
    ] {
        let problems = problems(&format!("{SMALLEST}{section}\n")).join("\n");
        assert!(problems.contains(expected), "{section}: {problems:?}");
    }
}

#[test]
fn rules_that_are_hardly_meant_are_warned_of() {
    for (section, expected) in [
        ("admission: {deny: [0.0.0.0/0]}", "nobody of this family"),
        (
            "interfaces: {eth0: {side: public}}\nadmission: {private_ports: [40000]}",
            "answers to 40000 would be dropped",
        ),
        (
            "kernel: {enabled: false}\nadmission: {new_connections_per_source: {rate: 1}}",
            "kernel.enabled is false: private ports and rates of sources are not guarded",
        ),
    ] {
        let warnings = warnings(&format!("{section}\n")).join("\n");
        assert!(warnings.contains(expected), "{section}: {warnings:?}");
    }
}

#[test]
fn a_burst_is_the_rate_unless_it_is_written() {
    let text = format!("{SMALLEST}admission: {{new_connections_per_source: {{rate: 7}}}}\n");
    let config = parse(&text, std::path::Path::new("f.yaml")).expect("the file is right");
    assert_eq!(config.admission.new_connections_per_source.map(|limit| (limit.rate, limit.burst)), Some((7, 7)));
}
