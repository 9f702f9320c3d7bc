//! The dashboard's files, as they stand in the binary, and the headers that keep a browser from doing more with them than
//! it should.

use axum::Router;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{Redirect, Response};
use axum::routing::get;

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

const FILES: &[(&str, &str, &str)] = &[
    ("/dashboard", HTML, include_str!("assets/index.html")),
    ("/dashboard/icon.svg", SVG, include_str!("assets/icon.svg")),
    ("/dashboard/base.css", CSS, include_str!("assets/base.css")),
    ("/dashboard/parts.css", CSS, include_str!("assets/parts.css")),
    ("/dashboard/tables.css", CSS, include_str!("assets/tables.css")),
    ("/dashboard/app.js", SCRIPT, include_str!("assets/app.js")),
    ("/dashboard/ask.js", SCRIPT, include_str!("assets/ask.js")),
    ("/dashboard/chart.js", SCRIPT, include_str!("assets/chart.js")),
    ("/dashboard/dom.js", SCRIPT, include_str!("assets/dom.js")),
    ("/dashboard/list.js", SCRIPT, include_str!("assets/list.js")),
    ("/dashboard/orders.js", SCRIPT, include_str!("assets/orders.js")),
    ("/dashboard/say.js", SCRIPT, include_str!("assets/say.js")),
    ("/dashboard/words.js", SCRIPT, include_str!("assets/words.js")),
    ("/dashboard/views/flows.js", SCRIPT, include_str!("assets/views/flows.js")),
    ("/dashboard/views/kernel.js", SCRIPT, include_str!("assets/views/kernel.js")),
    ("/dashboard/views/overview.js", SCRIPT, include_str!("assets/views/overview.js")),
    ("/dashboard/views/pools.js", SCRIPT, include_str!("assets/views/pools.js")),
    ("/dashboard/views/providers.js", SCRIPT, include_str!("assets/views/providers.js")),
    ("/dashboard/views/routes.js", SCRIPT, include_str!("assets/views/routes.js")),
];

pub(super) fn router() -> Router {
    let router = Router::new()
        .route("/", get(|| async { Redirect::temporary("dashboard") }))
        .route("/stats", get(|| async { Redirect::permanent("dashboard") }));
    FILES.iter().fold(router, |router, &(path, content_type, body)| {
        router.route(path, get(move || async move { ([(header::CONTENT_TYPE, content_type)], body) }))
    })
}

/// Goes around every answer of the TCP side.
pub(crate) async fn add_headers(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

/// The page loads its own files and nothing else, runs no inline script and stands in nobody's frame.
const HEADERS: [(HeaderName, &str); 6] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::l4::outcome::{EndReason, Refusal, RelayReason};

    #[test]
    fn the_page_explains_every_word() {
        let script = include_str!("assets/words.js");
        let words = Refusal::ALL.iter().map(|r| r.as_str());
        let words = words.chain(RelayReason::ALL.iter().map(|r| r.as_str()));
        for word in words.chain(EndReason::ALL.iter().map(|r| r.as_str())) {
            assert!(script.contains(&format!("  {word}: \"")), "words.js does not explain {word}");
        }
    }

    #[test]
    fn every_file_is_served_and_every_import_leads_to_one() {
        let served = |path: &str| FILES.iter().any(|(served, ..)| *served == path);
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/admin/dashboard/assets");
        for folder in ["", "views/"] {
            for entry in std::fs::read_dir(dir.join(folder)).expect("a folder") {
                let entry = entry.expect("an entry");
                let name = format!("{folder}{}", entry.file_name().display());
                let is_page = name == "index.html";
                assert!(is_page || entry.path().is_dir() || served(&format!("/dashboard/{name}")), "{name}");
            }
        }
        for (path, _, text) in FILES {
            let imports = text.lines().filter_map(|line| line.strip_prefix("import ")?.split('"').nth(1));
            let folder = if path.contains("/views/") { "views" } else { "." };
            for import in imports {
                let target = match (folder, import.strip_prefix("../"), import.strip_prefix("./")) {
                    ("views", Some(above), _) => format!("/dashboard/{above}"),
                    ("views", None, Some(beside)) => format!("/dashboard/views/{beside}"),
                    (_, _, Some(beside)) => format!("/dashboard/{beside}"),
                    (..) => panic!("{path} imports {import}"),
                };
                assert!(served(&target), "{path} imports {import}, which nobody serves");
            }
        }
    }

    #[test]
    fn nothing_from_outside_can_become_html() {
        for (path, content_type, text) in FILES.iter().filter(|(_, content_type, _)| *content_type == SCRIPT) {
            for way in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("] {
                assert!(!text.contains(way), "{way} in {path} ({content_type})");
            }
        }
    }
}
