//! What stands in the ClientHello message, behind its type and length (RFC 8446 section 4.1.2; the same fields since
//! TLS 1.0).

use std::net::Ipv4Addr;

use super::super::reader::{Malformed, Reader};
use super::{ClientHello, MAJOR_VERSION};
use crate::route::Sni;

/// `length` is what the caller counted for [`ClientHello::length`].
pub(super) fn parse(mut hello: Reader<'_>, length: usize) -> Result<ClientHello, Malformed> {
    if hello.array::<2>("legacy_version")?[0] != MAJOR_VERSION {
        return Err(Malformed("legacy_version"));
    }
    hello.take(32, "random")?;
    if hello.vec8("legacy_session_id")?.len() > 32 {
        return Err(Malformed("legacy_session_id"));
    }
    let cipher_suites = hello.vec16("cipher_suites")?;
    if cipher_suites.is_empty() || cipher_suites.len() % 2 != 0 {
        return Err(Malformed("cipher_suites"));
    }
    if hello.vec8("legacy_compression_methods")?.is_empty() {
        return Err(Malformed("legacy_compression_methods"));
    }
    let mut found = ClientHello { sni: None, alpn: None, length };
    // A client of TLS 1.2 or older may send none at all.
    if hello.is_empty() {
        return Ok(found);
    }
    let mut extensions = Reader::new(hello.vec16("extensions")?);
    hello.finish("extensions")?;
    let mut kinds = Vec::with_capacity(32);
    while !extensions.is_empty() {
        let kind = extensions.u16("extension type")?;
        let data = extensions.vec16("extension")?;
        kinds.push(kind);
        match kind {
            EXTENSION_SERVER_NAME => found.sni = server_name(data)?,
            EXTENSION_ALPN => found.alpn = alpn(data)?,
            // GREASE (RFC 8701), Encrypted Client Hello and all that only the backend must understand.
            _ => {}
        }
    }
    // RFC 8446 section 4.2. A second name could tell the backend another story than the route.
    kinds.sort_unstable();
    if kinds.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(Malformed("an extension that is there twice"));
    }
    Ok(found)
}

/// RFC 6066 section 3: a list with at most one name per type. Every type's name starts with its length, so that unknown
/// types can be skipped.
fn server_name(extension: &[u8]) -> Result<Option<Sni>, Malformed> {
    let mut list = list(extension, "server_name")?;
    let mut host = None;
    while !list.is_empty() {
        let kind = list.u8("server_name")?;
        let name = list.vec16("server_name")?;
        if kind != NAME_TYPE_HOST {
            continue;
        }
        if name.is_empty() || host.replace(name).is_some() {
            return Err(Malformed("server_name"));
        }
    }
    Ok(host.and_then(host_name))
}

fn host_name(name: &[u8]) -> Option<Sni> {
    let sni = Sni::parse(std::str::from_utf8(name).ok()?).ok()?;
    sni.as_str().parse::<Ipv4Addr>().is_err().then_some(sni)
}

/// RFC 7301 section 3.1.
fn alpn(extension: &[u8]) -> Result<Option<String>, Malformed> {
    let mut list = list(extension, "application_layer_protocol_negotiation")?;
    let mut joined = String::new();
    while !list.is_empty() {
        let name = list.vec8("application_layer_protocol_negotiation")?;
        if name.is_empty() {
            return Err(Malformed("application_layer_protocol_negotiation"));
        }
        // Not printable: GREASE (RFC 8701), or nothing that anybody wants in a log. A comma would read as two names.
        let printable = name.iter().all(|byte| byte.is_ascii_graphic() && *byte != b',');
        let comma = usize::from(!joined.is_empty());
        if printable && joined.len() + comma + name.len() <= MAX_ALPN {
            joined.extend(std::iter::repeat_n(',', comma));
            joined.extend(name.iter().map(|&byte| char::from(byte)));
        }
    }
    Ok((!joined.is_empty()).then_some(joined))
}

/// An extension that is one list with at least one entry.
fn list<'a>(extension: &'a [u8], field: &'static str) -> Result<Reader<'a>, Malformed> {
    let mut reader = Reader::new(extension);
    let list = reader.vec16(field)?;
    reader.finish(field)?;
    if list.is_empty() { Err(Malformed(field)) } else { Ok(Reader::new(list)) }
}

const EXTENSION_SERVER_NAME: u16 = 0;
const EXTENSION_ALPN: u16 = 16;
const NAME_TYPE_HOST: u8 = 0;
const MAX_ALPN: usize = 64;
