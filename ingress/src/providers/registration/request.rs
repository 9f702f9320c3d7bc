//! Bodies of requests: JSON whose every fault is named by its field.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde_json::{Map, Value};

use super::book::{ProxyHeader, Secret, Shape, Tls, Upstream};
use super::problem::{Kind, Problem};
use crate::route::SniPattern;

/// What `POST /register` asks for.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Wish {
    pub(super) host: SniPattern,
    pub(super) ttl: Option<u32>,
    pub(super) shape: Shape,
}

/// # Errors
/// The first fault, with its field.
pub(super) fn register(body: &[u8]) -> Result<Wish, Problem> {
    let mut fields = Fields::read(body)?;
    let host = host(&mut fields)?;
    let ttl = fields.take("ttl").map(|ttl| number(&ttl, "ttl", 1, LONGEST_TTL)).transpose()?;
    let shape = if fields.0.contains_key("template") { template(&mut fields)? } else { simple(&mut fields)? };
    fields.finish()?;
    Ok(Wish { host, ttl, shape })
}

/// The body of `POST /deregister` and `POST /heartbeat`.
///
/// # Errors
/// The first fault, with its field.
pub(super) fn host_only(body: &[u8]) -> Result<SniPattern, Problem> {
    let mut fields = Fields::read(body)?;
    let host = host(&mut fields)?;
    fields.finish()?;
    Ok(host)
}

fn host(fields: &mut Fields) -> Result<SniPattern, Problem> {
    let text = string(&fields.need("host")?, "host")?;
    let plain = text.strip_suffix('.').unwrap_or(&text);
    let no_name = plain.parse::<IpAddr>().is_ok() || plain.rsplit('.').next().is_some_and(is_number);
    if no_name {
        return Err(invalid("host", "clients send host names only, never addresses (RFC 6066 section 3)"));
    }
    SniPattern::parse(&text)
        .map_err(|_| invalid("host", "this is not a host name such as app.example.com, or *.example.com"))
}

fn is_number(label: &str) -> bool {
    !label.is_empty() && label.bytes().all(|b| b.is_ascii_digit())
}

fn simple(fields: &mut Fields) -> Result<Shape, Problem> {
    let backends = match (fields.take("backend"), fields.take("backends")) {
        (Some(_), Some(_)) => return Err(invalid("backend", "write `backend` or `backends`, not both")),
        (Some(one), None) => vec![upstream(one, "backend")?],
        (None, Some(Value::Array(many))) if (1..=MOST_BACKENDS).contains(&many.len()) => {
            let many = many.into_iter().enumerate();
            many.map(|(n, one)| upstream(one, &format!("backends[{n}]"))).collect::<Result<Vec<_>, _>>()?
        }
        (None, Some(Value::Array(_))) => {
            return Err(invalid("backends", format!("write 1 to {MOST_BACKENDS} of them")));
        }
        (None, Some(_)) => return Err(invalid("backends", "this is not a list")),
        (None, None) => {
            let detail = "this field is missing; write `backend`, `backends`, or `template` with `address`";
            return Err(invalid("backends", detail));
        }
    };
    for (n, one) in backends.iter().enumerate() {
        if backends[..n].iter().any(|other| other.address == one.address) {
            return Err(invalid(format!("backends[{n}]"), format!("{} stands here twice", one.address)));
        }
    }
    let tls = fields.word("tls", &[("passthrough", Tls::Passthrough), ("terminate", Tls::Terminate)])?;
    let headers = [("none", ProxyHeader::None), ("v1", ProxyHeader::V1), ("v2", ProxyHeader::V2)];
    let proxy_protocol = fields.word("proxy_protocol", &headers)?;
    Ok(Shape::Simple { backends, tls, proxy_protocol })
}

fn upstream(value: Value, field: &str) -> Result<Upstream, Problem> {
    let (address, weight) = match value {
        Value::Object(parts) => {
            let mut parts = Fields(parts);
            let address = parts.take("address").ok_or_else(|| missing(&format!("{field}.address")))?;
            let at = format!("{field}.weight");
            let weight = parts.take("weight").map(|weight| number(&weight, &at, 0, HEAVIEST)).transpose()?;
            if let Some(unknown) = parts.0.keys().next() {
                return Err(invalid(format!("{field}.{}", shown(unknown)), "there is no such field"));
            }
            (socket(&address, &format!("{field}.address"))?, weight.unwrap_or(1))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            (socket(&value, field)?, 1)
        }
    };
    Ok(Upstream { address, weight })
}

/// A host name could later resolve to an address that nobody would have allowed.
fn socket(value: &Value, field: &str) -> Result<SocketAddr, Problem> {
    let detail = "this is not an IP address with a port, such as 10.0.1.5:8443 or [2001:db8::5]:8443";
    string(value, field)?.parse().map_err(|_| invalid(field, detail))
}

fn template(fields: &mut Fields) -> Result<Shape, Problem> {
    let template = string(&fields.need("template")?, "template")?;
    let address = string(&fields.need("address")?, "address")?;
    let address = address.parse().map_err(|_| invalid("address", "this is not an IP address such as 10.0.1.5"))?;
    let secrets = match fields.take("secrets") {
        None => BTreeMap::new(),
        Some(Value::Object(secrets)) => secrets
            .into_iter()
            .map(|(name, value)| {
                let field = format!("secrets.{}", shown(&name));
                let secret = string(&value, &field)?;
                // It becomes the value of a header: RFC 9110 section 5.5.
                let fits =
                    (1..=LONGEST_SECRET).contains(&secret.len()) && secret.bytes().all(|b| (b' '..=b'~').contains(&b));
                match fits {
                    true => Ok((name, Secret(secret))),
                    false => Err(invalid(field, format!("write 1 to {LONGEST_SECRET} printable ASCII characters"))),
                }
            })
            .collect::<Result<_, _>>()?,
        Some(_) => return Err(invalid("secrets", "this is not an object")),
    };
    Ok(Shape::Template { template, address, secrets })
}

/// The fields of an object that were not read yet.
struct Fields(Map<String, Value>);

impl Fields {
    fn read(body: &[u8]) -> Result<Self, Problem> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(fields)) => Ok(Self(fields)),
            Ok(_) => Err(Problem::new(Kind::NotJson, "the body is JSON, but not an object")),
            Err(error) => Err(Problem::new(Kind::NotJson, format!("the body is not JSON: {error}"))),
        }
    }

    fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name)
    }

    fn need(&mut self, name: &str) -> Result<Value, Problem> {
        self.take(name).ok_or_else(|| missing(name))
    }

    fn word<T: Copy + Default>(&mut self, name: &str, words: &[(&str, T)]) -> Result<T, Problem> {
        let Some(value) = self.take(name) else { return Ok(T::default()) };
        let word = string(&value, name)?;
        words.iter().find(|(known, _)| *known == word).map(|(_, value)| *value).ok_or_else(|| {
            let words = words.iter().map(|(known, _)| format!("`{known}`")).collect::<Vec<_>>().join(", ");
            invalid(name, format!("write one of {words}"))
        })
    }

    fn finish(self) -> Result<(), Problem> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(unknown) => Err(invalid(shown(unknown), "there is no such field here")),
        }
    }
}

fn string(value: &Value, field: &str) -> Result<String, Problem> {
    value.as_str().map(str::to_owned).ok_or_else(|| invalid(field, "this is not a string"))
}

fn number(value: &Value, field: &str, least: u32, most: u32) -> Result<u32, Problem> {
    let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
    let number = number.filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| invalid(field, format!("this is not a whole number from {least} to {most}")))
}

fn missing(field: &str) -> Problem {
    invalid(field, "this field is missing")
}

pub(super) fn invalid(field: impl Into<String>, detail: impl Into<String>) -> Problem {
    Problem::at(Kind::InvalidField, field, detail)
}

/// A name that the caller chose, short enough to be given back.
fn shown(name: &str) -> String {
    name.chars().take(64).collect()
}

/// A week: who says nothing for so long wants no lease.
pub(super) const LONGEST_TTL: u32 = 7 * 86_400;
const MOST_BACKENDS: usize = 64;
const HEAVIEST: u32 = 256;
const LONGEST_SECRET: usize = 1024;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wish(body: &str) -> Result<Wish, (u16, String)> {
        register(body.as_bytes()).map_err(|p| (p.status().as_u16(), p.field().unwrap_or_default().to_owned()))
    }

    #[test]
    fn simple_shapes_are_read() {
        let one = wish(r#"{"host": "App.Example.com", "backend": "10.0.1.5:8443"}"#).expect("a wish");
        let list = wish(r#"{"host": "app.example.com", "backends": ["10.0.1.5:8443"]}"#).expect("a wish");
        assert_eq!(one, list);
        let rich = r#"{"host": "*.example.com", "ttl": 30, "tls": "terminate", "proxy_protocol": "v2",
            "backends": [{"address": "10.0.1.5:8443", "weight": 3}, "[2001:db8::5]:1"]}"#;
        let rich = wish(rich).expect("a wish");
        assert_eq!((rich.ttl, rich.host.to_string()), (Some(30), "*.example.com".to_owned()));
        let Shape::Simple { backends, tls, proxy_protocol } = rich.shape else { panic!("not simple") };
        assert_eq!((backends[0].weight, backends[1].weight), (3, 1));
        assert_eq!((tls, proxy_protocol), (Tls::Terminate, ProxyHeader::V2));
    }

    #[test]
    fn full_shapes_are_read() {
        let full =
            r#"{"host": "s1.example.com", "template": "full", "address": "10.0.1.5", "secrets": {"gateway": "x"}}"#;
        let Shape::Template { template, secrets, .. } = wish(full).expect("a wish").shape else { panic!("not full") };
        assert_eq!((template.as_str(), secrets.len()), ("full", 1));
    }

    #[test]
    fn every_fault_names_its_field() {
        for (body, status, field) in [
            ("", 400, ""),
            ("[]", 400, ""),
            (r#"{"host": "a.example.com""#, 400, ""),
            ("{}", 422, "host"),
            (r#"{"host": 5}"#, 422, "host"),
            (r#"{"host": "10.0.0.1", "backend": "10.0.1.5:1"}"#, 422, "host"),
            (r#"{"host": "10.0.0.1.", "backend": "10.0.1.5:1"}"#, 422, "host"),
            (r#"{"host": "a b", "backend": "10.0.1.5:1"}"#, 422, "host"),
            (r#"{"host": "*", "backend": "10.0.1.5:1"}"#, 422, "host"),
            (r#"{"host": "a.example.com"}"#, 422, "backends"),
            (r#"{"host": "a.example.com", "backends": []}"#, 422, "backends"),
            (r#"{"host": "a.example.com", "backends": "10.0.1.5:1"}"#, 422, "backends"),
            (r#"{"host": "a.example.com", "backends": ["10.0.1.5:1", "app.internal:1"]}"#, 422, "backends[1]"),
            (r#"{"host": "a.example.com", "backends": ["10.0.1.5:1", "10.0.1.5:1"]}"#, 422, "backends[1]"),
            (r#"{"host": "a.example.com", "backend": "10.0.1.5"}"#, 422, "backend"),
            (r#"{"host": "a.example.com", "backend": {"address": "10.0.1.5:1", "weight": -1}}"#, 422, "backend.weight"),
            (r#"{"host": "a.example.com", "backend": {"addres": "10.0.1.5:1"}}"#, 422, "backend.address"),
            (r#"{"host": "a.example.com", "backend": "10.0.1.5:1", "backends": ["10.0.1.5:1"]}"#, 422, "backend"),
            (r#"{"host": "a.example.com", "backend": "10.0.1.5:1", "ttl": 0}"#, 422, "ttl"),
            (r#"{"host": "a.example.com", "backend": "10.0.1.5:1", "ttl": 1.5}"#, 422, "ttl"),
            (r#"{"host": "a.example.com", "backend": "10.0.1.5:1", "tls": "off"}"#, 422, "tls"),
            (r#"{"host": "a.example.com", "backend": "10.0.1.5:1", "prot": 1}"#, 422, "prot"),
            (r#"{"host": "a.example.com", "template": "full"}"#, 422, "address"),
            (r#"{"host": "a.example.com", "template": "full", "address": "10.0.1.5:1"}"#, 422, "address"),
            (r#"{"host": "a.example.com", "template": "full", "address": "10.0.1.5", "backend": "x"}"#, 422, "backend"),
            (
                r#"{"host": "a.example.com", "template": "full", "address": "10.0.1.5", "secrets": {"g": "a\nb"}}"#,
                422,
                "secrets.g",
            ),
        ] {
            assert_eq!(wish(body), Err((status, field.to_owned())), "{body}");
        }
    }

    proptest! {
        #[test]
        fn no_body_makes_it_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = register(&body);
        }

        #[test]
        fn no_json_makes_it_panic(host in ".{0,40}", backend in ".{0,40}", ttl in any::<i64>()) {
            let body = serde_json::json!({"host": host, "backends": [backend.clone(), {"address": backend}], "ttl": ttl});
            let _ = register(body.to_string().as_bytes());
        }
    }
}
