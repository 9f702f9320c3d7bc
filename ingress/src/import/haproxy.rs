//! HAProxy's configuration, as far as it routes TLS by server name or passes TCP on: `frontend`, `backend` and `listen`
//! sections of `mode tcp`. Whatever is not carried over is named with file and line.

mod bind;
mod check;
mod draft;
mod proxy;
mod rule;
mod server;
mod words;

use std::collections::BTreeMap;

use super::{Draft, LeftOut};
use proxy::{Kind, Proxy, Settings};
use words::{At, Line};

/// Sections that are not about connections.
const OTHER_SECTIONS: &[&str] = &[
    "acme",
    "cache",
    "crt-store",
    "fcgi-app",
    "http-errors",
    "log-forward",
    "log-profile",
    "mailers",
    "peers",
    "program",
    "resolvers",
    "ring",
    "traces",
    "userlist",
];

/// The sections of all files, in their order.
#[derive(Debug, Default)]
struct Reader {
    /// What `defaults` said last, and those that have a name.
    defaults: Settings,
    named: BTreeMap<String, Settings>,
    current: Section,
    proxies: Vec<Proxy>,
    left_out: Vec<(At, String)>,
}

#[derive(Debug, Default)]
enum Section {
    #[default]
    None,
    Global,
    Other,
    Proxy(Box<Proxy>),
}

/// The files are read as one, as HAProxy reads them; each is a name and a text. Any text is either read or refused.
///
/// # Errors
/// The text is no configuration of HAProxy: file, line and reason.
pub fn import(files: &[(String, String)]) -> Result<Draft, String> {
    let mut reader = Reader::default();
    let name = |at: At| files.get(at.file).map_or("", |(name, _)| name);
    for (file, (name, text)) in files.iter().enumerate() {
        for (index, text) in text.lines().enumerate() {
            let at = At { file, line: index + 1 };
            let place = || format!("{name}:{}", at.line);
            let line =
                words::line(at, text).map_err(|words::OpenQuote| format!("{}: a quote is not closed", place()))?;
            if let Some(line) = line {
                reader.line(&line).map_err(|why| format!("{}: {why}", place()))?;
            }
        }
    }
    reader.end_section();
    let Reader { proxies, mut left_out, .. } = reader;
    let mut draft = draft::assemble(&proxies, &mut left_out);
    left_out.sort();
    left_out.dedup();
    let told = |(at, why): (At, String)| LeftOut { place: format!("{}:{}", name(at), at.line), why };
    draft.left_out = left_out.into_iter().map(told).collect();
    if draft.listeners.is_empty() {
        let why = "no section listens that could be carried over: mode tcp, without TLS termination";
        draft
            .left_out
            .push(LeftOut { place: files.first().map_or_else(String::new, |(n, _)| n.clone()), why: why.into() });
    }
    Ok(draft)
}

impl Reader {
    fn line(&mut self, line: &Line) -> Result<(), String> {
        let Some((word, rest)) = line.words.split_first() else { return Ok(()) };
        let kind = match word.as_str() {
            "defaults" => Kind::Defaults,
            "frontend" => Kind::Frontend,
            "backend" => Kind::Backend,
            "listen" => Kind::Listen,
            "global" => {
                self.end_section();
                self.current = Section::Global;
                return Ok(());
            }
            other if OTHER_SECTIONS.contains(&other) => {
                self.end_section();
                self.current = Section::Other;
                let name = rest.first().map_or_else(String::new, |name| format!(" {name}"));
                self.left_out.push((line.at, format!("section {other}{name}: not carried over")));
                return Ok(());
            }
            macro_word if macro_word.starts_with('.') => {
                self.left_out.push((line.at, format!("`{macro_word}`: conditions are not judged, all lines are read")));
                return Ok(());
            }
            _ => return self.directive(line),
        };
        self.end_section();
        let from = rest.iter().position(|word| word == "from").and_then(|at| rest.get(at + 1));
        let settings = match from {
            Some(name) => {
                self.named.get(name).cloned().ok_or_else(|| format!("there is no `defaults {name}` before"))?
            }
            None if kind == Kind::Defaults => Settings::default(),
            None => self.defaults.clone(),
        };
        let name = rest.first().filter(|name| *name != "from").cloned().unwrap_or_default();
        if name.is_empty() && kind != Kind::Defaults {
            return Err(format!("a name was expected behind `{word}`"));
        }
        self.current = Section::Proxy(Box::new(Proxy::new(kind, line.at, name, settings)));
        Ok(())
    }

    fn directive(&mut self, line: &Line) -> Result<(), String> {
        match &mut self.current {
            Section::Proxy(proxy) => proxy.line(line),
            // How HAProxy itself runs is of no use here, but for its one bound.
            Section::Global => {
                if let [word, most, ..] = line.words.as_slice()
                    && word == "maxconn"
                {
                    self.left_out.push((line.at, format!("maxconn {most}: write limits.max_connections")));
                }
            }
            Section::Other => {}
            Section::None => {
                let words = rule::short(&line.words);
                return Err(format!("`{words}` stands in no section; is this a configuration of HAProxy?"));
            }
        }
        Ok(())
    }

    fn end_section(&mut self) {
        let Section::Proxy(proxy) = std::mem::take(&mut self.current) else { return };
        match proxy.kind {
            Kind::Defaults => {
                let Proxy { name, settings, notes, .. } = *proxy;
                self.left_out.extend(notes);
                if !name.is_empty() {
                    self.named.insert(name, settings.clone());
                }
                self.defaults = settings;
            }
            Kind::Frontend | Kind::Backend | Kind::Listen => self.proxies.push(*proxy),
        }
    }
}

#[cfg(test)]
mod tests;
