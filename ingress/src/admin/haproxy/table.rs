//! The columns of `show stat`, and the ways to write a row: CSV, typed, JSON. Pure.
//!
//! They are those of HAProxy 2.6 up to its column `-`; behind that one stand counters of its TLS and HTTP engines.

use std::fmt::Write as _;

use serde_json::json;

/// What a row is about; the letters and words of HAProxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Frontend,
    Backend,
    Server,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Number(u64),
    /// "Not in this life": HAProxy's -1.
    Never,
    Text(String),
}

/// One line; what is not said stays empty, as HAProxy does it.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) kind: Kind,
    /// Of the proxy: listeners and pools, counted from 2 as HAProxy does.
    pub(super) iid: u32,
    /// Of the server in its pool, from 1; 0 for what is none.
    pub(super) sid: u32,
    values: Vec<Option<Value>>,
}

/// How `show stat` and `show info` are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Format {
    #[default]
    Plain,
    Typed,
    Json,
}

impl Kind {
    /// The bit of `show stat <proxy> <type> <server>`, and the value of the column `type`.
    pub(super) const fn number(self) -> u32 {
        match self {
            Self::Frontend => 0,
            Self::Backend => 1,
            Self::Server => 2,
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Frontend => "Frontend",
            Self::Backend => "Backend",
            Self::Server => "Server",
        }
    }
}

impl Row {
    pub(super) fn new(kind: Kind, iid: u32, sid: u32, proxy: &str, name: &str) -> Self {
        let mut row = Self { kind, iid, sid, values: vec![None; COLUMNS.len()] };
        row.text("pxname", proxy);
        row.text("svname", name);
        for (column, value) in [("pid", 1), ("iid", iid), ("sid", sid), ("type", kind.number())] {
            row.number(column, value);
        }
        row.text("mode", "tcp");
        row
    }

    pub(super) fn number(&mut self, column: &str, value: impl Into<u64>) {
        self.set(column, Value::Number(value.into()));
    }

    pub(super) fn text(&mut self, column: &str, value: impl Into<String>) {
        self.set(column, Value::Text(value.into()));
    }

    pub(super) fn never(&mut self, column: &str) {
        self.set(column, Value::Never);
    }

    fn set(&mut self, column: &str, value: Value) {
        if let Some(at) = COLUMNS.iter().position(|(name, _)| *name == column) {
            self.values[at] = Some(value);
        }
    }

    /// Of a frontend, server or backend.
    pub(super) fn status(&self) -> &str {
        let at = COLUMNS.iter().position(|(name, _)| *name == "status");
        match at.and_then(|at| self.values[at].as_ref()) {
            Some(Value::Text(status)) => status,
            Some(Value::Number(_) | Value::Never) | None => "",
        }
    }

    fn said(&self) -> impl Iterator<Item = (usize, &'static str, &'static str, &Value)> {
        let columns = COLUMNS.iter().zip(&self.values).enumerate();
        columns.filter_map(|(at, ((name, tag), value))| Some((at, *name, *tag, value.as_ref()?)))
    }
}

/// With the empty line at the end still missing, as all answers here.
pub(super) fn write(rows: &[Row], format: Format) -> String {
    let mut out = String::new();
    match format {
        Format::Plain => {
            out.push_str(&header());
            rows.iter().for_each(|row| csv(row, &mut out));
        }
        Format::Typed => rows.iter().for_each(|row| typed(row, &mut out)),
        Format::Json => {
            let rows: Vec<_> = rows.iter().map(json).collect();
            out = serde_json::Value::from(rows).to_string() + "\n";
        }
    }
    out
}

pub(super) fn header() -> String {
    let names: String = COLUMNS.iter().map(|(name, _)| format!("{name},")).collect();
    format!("# {names}-,\n")
}

fn csv(row: &Row, out: &mut String) {
    for value in &row.values {
        if let Some(value) = value {
            match value {
                Value::Text(text) if text.contains([',', '"', '\n']) => {
                    let _ = write!(out, "\"{}\"", text.replace('"', "\"\""));
                }
                Value::Text(_) | Value::Number(_) | Value::Never => out.push_str(&value.to_string()),
            }
        }
        out.push(',');
    }
    out.push_str("-,\n");
}

fn typed(row: &Row, out: &mut String) {
    let letter = row.kind.word().chars().next().unwrap_or_default();
    for (at, name, tag, value) in row.said() {
        let tag = if value == &Value::Never { tag.replace("u32", "s32") } else { tag.to_owned() };
        // Into a String: nothing can fail.
        let _ = writeln!(out, "{letter}.{}.{}.{at}.{name}.1:{tag}:{value}", row.iid, row.sid);
    }
    out.push('\n');
}

fn json(row: &Row) -> serde_json::Value {
    let fields = row.said().map(|(at, name, tag, value)| {
        let mut field = tagged(at, name, tag, value);
        field["objType"] = row.kind.word().into();
        field["proxyId"] = row.iid.into();
        field["id"] = row.sid.into();
        field
    });
    fields.collect()
}

/// One value as HAProxy's JSON has it; `tag` is the one of the typed form, such as `MGP:u32`.
pub(super) fn tagged(at: usize, name: &str, tag: &str, value: &Value) -> serde_json::Value {
    let mut letters = tag.chars();
    let origin = match letters.next() {
        Some('S') => "Status",
        Some('K') => "Key",
        Some('C') => "Config",
        Some('P') => "Product",
        Some(_) | None => "Metric",
    };
    let nature = match letters.next() {
        Some('A') => "Age",
        Some('a') => "Avg",
        Some('C') => "Counter",
        Some('D') => "Duration",
        Some('L') => "Limit",
        Some('M') => "Max",
        Some('N') => "Name",
        Some('O') => "Output",
        Some('R') => "Rate",
        Some(_) | None => "Gauge",
    };
    let scope = if letters.next() == Some('S') { "Service" } else { "Process" };
    let kind = match value {
        Value::Number(_) => tag.rsplit(':').next().unwrap_or("u64"),
        Value::Never => "s32",
        Value::Text(_) => "str",
    };
    let value = match value {
        Value::Number(number) => json!(number),
        Value::Never => json!(-1),
        Value::Text(text) => json!(text),
    };
    json!({
        "field": { "pos": at, "name": name },
        "processNum": 1,
        "tags": { "origin": origin, "nature": nature, "scope": scope },
        "value": { "type": kind, "value": value },
    })
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Never => f.write_str("-1"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

/// Name, and how the typed form describes its values: origin, nature, scope and type. Empty: never said here.
#[rustfmt::skip]
const COLUMNS: &[(&str, &str)] = &[
    ("pxname", "KNS:str"), ("svname", "KNS:str"), ("qcur", "MGP:u32"), ("qmax", "MMP:u32"), ("scur", "MGP:u32"),
    ("smax", "MMP:u32"), ("slim", "CLP:u32"), ("stot", "MCP:u64"), ("bin", "MCP:u64"), ("bout", "MCP:u64"),
    ("dreq", "MCP:u64"), ("dresp", "MCP:u64"), ("ereq", "MCP:u64"), ("econ", "MCP:u64"), ("eresp", "MCP:u64"),
    ("wretr", "MCP:u64"), ("wredis", "MCP:u64"), ("status", "SGP:str"), ("weight", "MaP:u32"), ("act", "MGP:u32"),
    ("bck", "MGP:u32"), ("chkfail", "MCP:u64"), ("chkdown", "MCP:u64"), ("lastchg", "MAP:u32"),
    ("downtime", "MCP:u32"), ("qlimit", ""), ("pid", "KGP:u32"), ("iid", "KGS:u32"), ("sid", "KGS:u32"),
    ("throttle", "MaP:u32"), ("lbtot", "MCP:u64"), ("tracked", ""), ("type", "CGS:u32"), ("rate", "MGP:u32"),
    ("rate_lim", "CLP:u32"), ("rate_max", "MGP:u32"), ("check_status", "MOP:str"), ("check_code", ""),
    ("check_duration", "MDP:u64"), ("hrsp_1xx", ""), ("hrsp_2xx", ""), ("hrsp_3xx", ""), ("hrsp_4xx", ""),
    ("hrsp_5xx", ""), ("hrsp_other", ""), ("hanafail", ""), ("req_rate", "MRP:u32"), ("req_rate_max", "MMP:u32"),
    ("req_tot", "MCP:u64"), ("cli_abrt", "MCP:u64"), ("srv_abrt", "MCP:u64"), ("comp_in", "MCP:u64"),
    ("comp_out", "MCP:u64"), ("comp_byp", "MCP:u64"), ("comp_rsp", "MCP:u64"), ("lastsess", "MAP:s32"),
    ("last_chk", "MOP:str"), ("last_agt", ""), ("qtime", "MaP:u32"), ("ctime", "MaP:u32"), ("rtime", "MaP:u32"),
    ("ttime", "MaP:u32"), ("agent_status", ""), ("agent_code", ""), ("agent_duration", ""), ("check_desc", "MOP:str"),
    ("agent_desc", ""), ("check_rise", "CGS:u32"), ("check_fall", "CGS:u32"), ("check_health", "CGS:u32"),
    ("agent_rise", ""), ("agent_fall", ""), ("agent_health", ""), ("addr", "CGS:str"), ("cookie", ""),
    ("mode", "CGS:str"), ("algo", "CGS:str"), ("conn_rate", "MRP:u32"), ("conn_rate_max", "MMP:u32"),
    ("conn_tot", "MCP:u64"), ("intercepted", ""), ("dcon", "MCP:u64"), ("dses", "MCP:u64"), ("wrew", "MCP:u64"),
    ("connect", "MCP:u64"), ("reuse", "MCP:u64"), ("cache_lookups", ""), ("cache_hits", ""), ("srv_icur", "MGP:u32"),
    ("src_ilim", ""), ("qtime_max", "MMP:u32"), ("ctime_max", "MMP:u32"), ("rtime_max", "MMP:u32"),
    ("ttime_max", "MMP:u32"), ("eint", "MCP:u64"), ("idle_conn_cur", "MGP:u32"), ("safe_conn_cur", "MGP:u32"),
    ("used_conn_cur", "MGP:u32"), ("need_conn_est", "MGP:u32"), ("uweight", "MaP:u32"),
    ("agg_server_status", "MGP:u32"), ("agg_server_check_status", "MGP:u32"), ("agg_check_status", "MGP:u32"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Row {
        let mut row = Row::new(Kind::Server, 3, 1, "web", "b1");
        row.number("scur", 4u32);
        row.never("lastsess");
        row.text("last_chk", "refused, \"really\"");
        row
    }

    #[test]
    fn a_row_has_a_place_for_each_column_and_quotes_what_needs_it() {
        let text = write(&[row()], Format::Plain);
        let (header, row) = text.split_once('\n').expect("two lines");
        assert!(header.starts_with("# pxname,svname,qcur,qmax,scur,") && header.ends_with(",agg_check_status,-,"));
        assert!(row.starts_with("web,b1,,,4,,"), "{row}");
        assert!(row.contains(",-1,\"refused, \"\"really\"\"\","), "{row}");
        assert_eq!(row.replace("refused, ", "").matches(',').count(), header.matches(',').count());
    }

    #[test]
    fn typed_and_json_say_the_same_with_types() {
        let typed = write(&[row()], Format::Typed);
        assert!(typed.contains("S.3.1.4.scur.1:MGP:u32:4\n") && typed.contains("lastsess.1:MAP:s32:-1\n"), "{typed}");
        let json: serde_json::Value = serde_json::from_str(&write(&[row()], Format::Json)).expect("JSON");
        let scur = json[0].as_array().expect("fields").iter().find(|f| f["field"]["name"] == "scur").expect("scur");
        assert_eq!((&scur["value"]["value"], &scur["objType"]), (&json!(4), &json!("Server")));
        assert_eq!(scur["tags"], json!({"origin": "Metric", "nature": "Gauge", "scope": "Process"}));
    }
}
