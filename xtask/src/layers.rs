//! `cargo xtask layers`: who may import what in the daemon. The table is the one of ARCHITECTURE.md, in its words.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

use crate::step;

/// Pure: no sockets, tasks or clock.
const MODEL: &[&str] = &["config", "route", "snapshot", "balance", "flow", "events"];
/// Codecs and plain data inside of modules: pure, so that any module may use them.
const LEAVES: &[&str] = &[
    "l4::client_hello",
    "l4::proxy_header",
    "l4::reader",
    "l4::outcome",
    "dataplane::view",
    "ddns::view",
    "etcd::view",
    "hooks::view",
    "peers::view",
    "providers::traefik",
    "secret",
];
/// Where everyone counts.
const COUNTERS: &str = "metrics";

/// One line of the table: these modules may import those, beside themselves, [`LEAVES`] and [`COUNTERS`].
struct Layer {
    modules: &'static [&'static str],
    may: &'static [&'static [&'static str]],
}

const TABLE: &[Layer] = &[
    Layer { modules: MODEL, may: &[MODEL] },
    Layer { modules: LEAVES, may: &[MODEL] },
    Layer { modules: &["dataplane", "tls", "vrrp"], may: &[MODEL] },
    Layer { modules: &["health", "resolve"], may: &[MODEL, &["clock"]] },
    Layer { modules: &["control"], may: &[MODEL, &["clock", "watch"]] },
    Layer {
        modules: &["providers"],
        may: &[MODEL, &["clock", "control::last_good", "etcd", "outbound", "peers", "serve", "watch"]],
    },
    Layer { modules: &["hooks"], may: &[MODEL, &["clock", "control::state", "outbound"]] },
    Layer { modules: &["import"], may: &[MODEL] },
    Layer { modules: &["ddns"], may: &[MODEL, &["outbound"]] },
    Layer { modules: &["clock", "watch", "serve", "outbound"], may: &[] },
    Layer { modules: &["l7"], may: &[MODEL, &["tls"]] },
    Layer { modules: &["l4"], may: &[MODEL, &["dataplane"]] },
    Layer { modules: &["acme"], may: &[MODEL, &["tls::store", "tls::challenge"]] },
    Layer { modules: &["peers"], may: &[MODEL, &["serve", "tls::store", "dataplane::flows"]] },
    Layer { modules: &["etcd"], may: &[MODEL, &["outbound", "peers::stamp", "peers::sync"]] },
    Layer { modules: &[COUNTERS], may: &[MODEL] },
    Layer { modules: &["admin"], may: &[MODEL, &["control::state", "serve"]] },
    Layer { modules: WIRING, may: &[EVERYTHING] },
];

const EVERYTHING: &[&str] = &["*"];
/// Imported by nobody but one another.
const WIRING: &[&str] = &["daemon", "cli", "main"];

pub(crate) fn run() -> Result<()> {
    step::announce("layers");
    let src = step::root().join("ingress/src");
    let mut scanned = Vec::new();
    let mut test_modules = Vec::new();
    for file in rust_files(&src)? {
        let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        let module = module_of(&src, &file);
        let scan = Scan::of(&module, &text).with_context(|| format!("reading {} as Rust", file.display()))?;
        test_modules.extend(scan.test_modules);
        scanned.push((file, module, scan.imports));
    }
    let mut broken = Vec::new();
    for (file, module, imports) in scanned {
        let is_test = test_modules.iter().any(|test| within(&module, test));
        // `lib.rs` only declares.
        if is_test || module == "lib" {
            continue;
        }
        let shown = file.strip_prefix(step::root()).unwrap_or(&file).display().to_string();
        broken.extend(violations(&module, imports).iter().map(|v| format!("{shown}:{v}")));
    }
    if broken.is_empty() {
        return Ok(());
    }
    bail!("imports against the table in ARCHITECTURE.md (xtask/src/layers.rs holds it):\n  {}", broken.join("\n  "))
}

/// One import that the table does not allow.
#[derive(Debug, PartialEq)]
struct Violation {
    line: usize,
    importer: String,
    imported: String,
    why: &'static str,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line, importer, imported, why } = self;
        write!(f, "{line}: {importer} imports {imported}: {why}")
    }
}

fn violations(module: &str, imports: Vec<(usize, String)>) -> Vec<Violation> {
    let judged = imports.into_iter().filter_map(|(line, imported)| {
        let why = judge(module, &imported)?;
        Some(Violation { line, importer: module.into(), imported, why })
    });
    judged.collect()
}

/// Why `importer` may not name `imported`; `None`: it may. Both are paths below the crate's root.
fn judge(importer: &str, imported: &str) -> Option<&'static str> {
    let Some(layer) = layer_of(importer) else {
        return Some("this module has no line in the table yet");
    };
    if layer.may.contains(&EVERYTHING) {
        return None;
    }
    let is_leaf = |path: &str| LEAVES.iter().any(|leaf| within(path, leaf));
    // A leaf stays pure: it may not lean on the module around it, nor count.
    let own = if is_leaf(importer) {
        is_leaf(imported)
    } else {
        top(importer) == top(imported) || within(imported, COUNTERS)
    };
    if own || is_leaf(imported) {
        return None;
    }
    if WIRING.contains(&top(imported)) {
        return Some("nobody imports the wiring");
    }
    if layer_of(imported).is_none() {
        return Some("the imported module has no line in the table yet");
    }
    let allowed = layer.may.iter().copied().flatten().any(|may| within(imported, may));
    (!allowed).then_some("the table does not allow it")
}

fn top(path: &str) -> &str {
    path.split("::").next().unwrap_or_default()
}

/// The line of the longest prefix of `path` that has one.
fn layer_of(path: &str) -> Option<&'static Layer> {
    let lines = TABLE.iter().flat_map(|layer| layer.modules.iter().map(move |m| (*m, layer)));
    lines.filter(|(m, _)| within(path, m)).max_by_key(|(m, _)| m.len()).map(|(_, layer)| layer)
}

fn within(path: &str, module: &str) -> bool {
    path.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// Collects every path that begins with `crate`, `super` or `self` (in the binary also with the library's name). Works
/// on tokens, so that paths in macros count too; code under `#[cfg(test)]` does not.
#[derive(Default)]
struct Scan {
    imports: Vec<(usize, String)>,
    /// `#[cfg(test)] mod name;`: whole files that are tests.
    test_modules: Vec<String>,
}

impl Scan {
    fn of(module: &str, source: &str) -> Result<Self> {
        let tokens: TokenStream = source.parse().map_err(|e| anyhow::anyhow!("{e}"))?;
        let path: Vec<String> = module.split("::").map(String::from).collect();
        let mut scan = Self::default();
        scan.module(&path, tokens);
        Ok(scan)
    }

    fn module(&mut self, path: &[String], tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut at = 0;
        while at < tokens.len() {
            at = self.step(path, &tokens, at);
        }
    }

    /// Handles what begins at `at`; where to go on.
    fn step(&mut self, path: &[String], tokens: &[TokenTree], at: usize) -> usize {
        match &tokens[at] {
            TokenTree::Punct(p) if p.as_char() == '#' && is_cfg_test(tokens.get(at + 1)) => {
                let end = after_item(tokens, at + 2);
                self.test_modules.extend(test_module(path, &tokens[at + 2..end]));
                end
            }
            TokenTree::Ident(word) if word == "mod" => match (tokens.get(at + 1), tokens.get(at + 2)) {
                (Some(TokenTree::Ident(name)), Some(TokenTree::Group(body))) => {
                    let inner: Vec<String> = path.iter().cloned().chain([name.to_string()]).collect();
                    self.module(&inner, body.stream());
                    at + 3
                }
                _ => at + 1,
            },
            TokenTree::Ident(word) if is_colons(tokens, at + 1) => {
                let base = match word.to_string().as_str() {
                    "crate" => Vec::new(),
                    "ingress" if path == ["main"] => Vec::new(),
                    "super" => path[..path.len().saturating_sub(1)].to_vec(),
                    "self" => path.to_vec(),
                    _ => return at + 1,
                };
                self.tree(base, tokens, at + 3)
            }
            TokenTree::Group(group) => {
                self.module(path, group.stream());
                at + 1
            }
            TokenTree::Ident(_) | TokenTree::Punct(_) | TokenTree::Literal(_) => at + 1,
        }
    }

    /// A path or `use` tree whose first segments are known; where to go on.
    fn tree(&mut self, mut base: Vec<String>, tokens: &[TokenTree], mut at: usize) -> usize {
        loop {
            match tokens.get(at) {
                Some(TokenTree::Ident(word)) => {
                    match word.to_string().as_str() {
                        "super" => drop(base.pop()),
                        "self" => {}
                        segment => base.push(segment.into()),
                    }
                    if is_colons(tokens, at + 1) {
                        at += 3;
                        continue;
                    }
                    self.found(word.span().start().line, &base);
                    return at + 1;
                }
                Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                    self.branches(&base, group);
                    return at + 1;
                }
                Some(star) => {
                    self.found(star.span().start().line, &base);
                    return at + 1;
                }
                None => return at,
            }
        }
    }

    fn branches(&mut self, base: &[String], group: &Group) {
        let tokens: Vec<TokenTree> = group.stream().into_iter().collect();
        let comma = |t: &TokenTree| matches!(t, TokenTree::Punct(p) if p.as_char() == ',');
        for branch in tokens.split(comma).filter(|b| !b.is_empty()) {
            self.tree(base.to_vec(), branch, 0);
        }
    }

    fn found(&mut self, line: usize, path: &[String]) {
        // The root itself (`use crate::*`, `crate::{self}`) names no module.
        let is_module = path.first().is_some_and(|first| first.starts_with(char::is_lowercase));
        if is_module {
            self.imports.push((line, path.join("::")));
        }
    }
}

fn is_colons(tokens: &[TokenTree], at: usize) -> bool {
    let colon = |t: Option<&TokenTree>| matches!(t, Some(TokenTree::Punct(p)) if p.as_char() == ':');
    colon(tokens.get(at)) && colon(tokens.get(at + 1))
}

/// `[cfg(test)]`, after its `#`.
fn is_cfg_test(attribute: Option<&TokenTree>) -> bool {
    let Some(TokenTree::Group(group)) = attribute else { return false };
    let text = group.stream().to_string().replace(' ', "");
    group.delimiter() == Delimiter::Bracket
        && text.starts_with("cfg(")
        && text.contains("test")
        && !text.contains("not(")
}

/// The full path of a module that is declared here and lies in a file of its own.
fn test_module(path: &[String], item: &[TokenTree]) -> Option<String> {
    let words: Vec<String> = item.iter().map(ToString::to_string).collect();
    let at = words.iter().position(|word| word == "mod")?;
    let name = words.get(at + 1)?;
    let inside = path.iter().filter(|segment| *segment != "lib").cloned();
    (words.last()? == ";").then(|| inside.chain([name.clone()]).collect::<Vec<_>>().join("::"))
}

/// Past the item that begins at `at`: behind its braces or its semicolon.
fn after_item(tokens: &[TokenTree], at: usize) -> usize {
    let ends = |t: &TokenTree| match t {
        TokenTree::Group(g) => g.delimiter() == Delimiter::Brace,
        TokenTree::Punct(p) => p.as_char() == ';',
        TokenTree::Ident(_) | TokenTree::Literal(_) => false,
    };
    tokens[at.min(tokens.len())..].iter().position(ends).map_or(tokens.len(), |n| at + n + 1)
}

fn rust_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// `l4/relay.rs` is `l4::relay`.
fn module_of(src: &Path, file: &Path) -> String {
    let path = file.strip_prefix(src).unwrap_or(file).with_extension("");
    path.iter().filter_map(|s| s.to_str()).collect::<Vec<_>>().join("::")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(module: &str, source: &str) -> Vec<(usize, String)> {
        let imports = Scan::of(module, source).expect("a fixture is Rust").imports;
        violations(module, imports).into_iter().map(|v| (v.line, v.imported)).collect()
    }

    #[test]
    fn allowed_imports_pass() {
        let source = "use crate::config::Config;\nuse crate::dataplane::{flows::Flow, view};\nuse super::l4::outcome;";
        assert_eq!(found("l4::handoff", &source.replace("super::l4", "super")), []);
        assert_eq!(found("l4", source), []);
        assert_eq!(found("main", "use ingress::cli;"), []);
        assert_eq!(found("cli::wiring", "use crate::daemon; use crate::dataplane::detach;"), []);
    }

    #[test]
    fn import_against_the_table_is_named_with_its_line() {
        assert_eq!(found("dataplane", "use std::fmt;\nuse crate::l4::relay::Relay;"), [(2, "l4::relay::Relay".into())]);
        assert_eq!(found("config", "use crate::{\n  route,\n  health::{probe}\n};"), [(3, "health::probe".into())]);
        assert_eq!(found("l4::relay", "use super::super::admin::Api;"), [(1, "admin::Api".into())]);
        assert_eq!(
            found("peers", "use crate::dataplane::flows; use crate::dataplane::maps;"),
            [(1, "dataplane::maps".into())]
        );
    }

    #[test]
    fn path_inside_an_expression_or_a_macro_counts() {
        assert_eq!(found("health", "fn f() { tracing::info!(x = crate::admin::X); }"), [(1, "admin::X".into())]);
        assert_eq!(
            found("balance", "type A = Vec<crate::dataplane::maps::Map>;"),
            [(1, "dataplane::maps::Map".into())]
        );
    }

    #[test]
    fn tests_may_import_what_they_like() {
        let source = "#[cfg(test)]\nmod tests { use crate::daemon; }\n#[cfg(test)]\nuse crate::l4;\nuse crate::admin;";
        assert_eq!(found("health", source), [(5, "admin".into())]);
    }

    #[test]
    fn test_module_in_a_file_of_its_own_is_known() {
        let source =
            "mod a;\n#[cfg(test)]\nmod tests;\n#[cfg(test)]\nmod inline { }\n#[cfg(test)] pub(crate) mod fixture;";
        assert_eq!(Scan::of("l4", source).expect("Rust").test_modules, ["l4::tests", "l4::fixture"]);
    }

    #[test]
    fn leaf_does_not_lean_on_the_module_around_it() {
        assert_eq!(found("l4::client_hello", "use super::relay::Relay;"), [(1, "l4::relay::Relay".into())]);
        assert_eq!(found("l4::client_hello", "use crate::route::Sni; use super::outcome::Refusal;"), []);
    }

    #[test]
    fn inline_module_resolves_super_to_its_own_file() {
        assert_eq!(found("health", "mod inner { use super::Probe; use super::super::l4; }"), [(1, "l4".into())]);
    }

    #[test]
    fn module_without_a_line_in_the_table_is_refused() {
        assert_eq!(found("helpers", "use crate::config;"), [(1, "config".into())]);
        assert_eq!(found("health", "use crate::helpers;"), [(1, "helpers".into())]);
        assert_eq!(found("admin", "use crate::daemon::run;"), [(1, "daemon::run".into())]);
    }
}
