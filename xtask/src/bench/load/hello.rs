//! A ClientHello in bytes: what a TLS 1.3 client of today sends, without the keys behind it (RFC 8446 section 4.1.2).

use super::{Order, SERVER_NAME};

/// The first bytes of the random say that the hello is ours; the next one carries the [`Order`].
const MAGIC: &[u8; 8] = b"ingrload";
/// Record header, handshake header and `legacy_version` stand before the random.
const RANDOM_OFFSET: usize = 5 + 4 + 2;
const RECORD_HEADER: usize = 5;

/// One whole TLS record with a ClientHello for [`SERVER_NAME`] that carries `order`.
pub(in crate::bench) fn client_hello(order: Order) -> Vec<u8> {
    let mut random = [0x5a; 32];
    random[..MAGIC.len()].copy_from_slice(MAGIC);
    random[MAGIC.len()] = order.code();

    let mut body = vec![0x03, 0x03];
    body.extend_from_slice(&random);
    body.extend(with_length(1, &[0xa5; 32])); // legacy_session_id
    body.extend(with_length(2, &[0x13, 0x01, 0x13, 0x02, 0x13, 0x03, 0xc0, 0x2b, 0xc0, 0x2f])); // cipher_suites
    body.extend(with_length(1, &[0x00])); // legacy_compression_methods
    body.extend(with_length(2, &extensions()));

    let mut handshake = vec![0x01];
    handshake.extend(with_length(3, &body));
    let mut record = vec![0x16, 0x03, 0x01];
    record.extend(with_length(2, &handshake));
    record
}

/// What the bytes read so far turn out to be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    NeedMore,
    /// Byte for byte the hello that our client sends; `length` bytes long.
    Hello {
        order: Order,
        length: usize,
    },
    NotOurs,
}

/// Reads a hello that [`client_hello`] made. Anything else, be it one byte, is [`Parsed::NotOurs`].
pub(super) fn parse(bytes: &[u8]) -> Parsed {
    let Some(header) = bytes.first_chunk::<RECORD_HEADER>() else { return Parsed::NeedMore };
    let length = RECORD_HEADER + usize::from(u16::from_be_bytes([header[3], header[4]]));
    let Some(record) = bytes.get(..length) else { return Parsed::NeedMore };
    let order = record.get(RANDOM_OFFSET + MAGIC.len()).and_then(|&code| Order::from_code(code));
    match order {
        Some(order) if record == client_hello(order) => Parsed::Hello { order, length },
        Some(_) | None => Parsed::NotOurs,
    }
}

fn extensions() -> Vec<u8> {
    let mut host = vec![0x00]; // name_type host_name
    host.extend(with_length(2, SERVER_NAME.as_bytes()));
    let alpn: Vec<u8> = [&b"h2"[..], b"http/1.1"].iter().flat_map(|name| with_length(1, name)).collect();
    let mut key_share = vec![0x00, 0x1d]; // x25519
    key_share.extend(with_length(2, &[0x42; 32]));

    [
        (0u16, with_length(2, &host)),                   // server_name
        (10, with_length(2, &[0x00, 0x1d, 0x00, 0x17])), // supported_groups
        (11, with_length(1, &[0x00])),                   // ec_point_formats
        (13, with_length(2, &[0x04, 0x03, 0x08, 0x04, 0x04, 0x01, 0x05, 0x03, 0x08, 0x05])), // signature_algorithms
        (16, with_length(2, &alpn)),                     // ALPN
        (43, with_length(1, &[0x03, 0x04, 0x03, 0x03])), // supported_versions
        (45, with_length(1, &[0x01])),                   // psk_key_exchange_modes
        (51, with_length(2, &key_share)),                // key_share
    ]
    .into_iter()
    .flat_map(|(kind, data)| [kind.to_be_bytes().to_vec(), with_length(2, &data)].concat())
    .collect()
}

/// `data` behind its length in `width` big-endian bytes.
fn with_length(width: usize, data: &[u8]) -> Vec<u8> {
    let length = data.len().to_be_bytes();
    [&length[length.len() - width..], data].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tls_library_reads_the_server_name_and_alpn() {
        let hello = client_hello(Order::Echo);
        let mut acceptor = rustls::server::Acceptor::default();
        acceptor.read_tls(&mut hello.as_slice()).expect("reading from memory");
        let accepted = acceptor.accept().ok().flatten().expect("a whole and valid ClientHello");
        let seen = accepted.client_hello();
        assert_eq!(seen.server_name(), Some(SERVER_NAME));
        assert_eq!(
            seen.alpn().map(|names| names.map(<[u8]>::to_vec).collect::<Vec<_>>()),
            Some(vec![b"h2".to_vec(), b"http/1.1".to_vec()])
        );
    }

    #[test]
    fn every_order_survives_the_trip_and_every_prefix_needs_more() {
        for order in [Order::Stream, Order::Echo, Order::Byte] {
            let hello = client_hello(order);
            for end in 0..hello.len() {
                assert_eq!(parse(&hello[..end]), Parsed::NeedMore, "after {end} bytes");
            }
            let followed = [hello.as_slice(), b"more"].concat();
            assert_eq!(parse(&followed), Parsed::Hello { order, length: hello.len() });
        }
    }

    #[test]
    fn a_single_changed_byte_is_not_ours() {
        let mut hello = client_hello(Order::Byte);
        *hello.last_mut().expect("not empty") ^= 1;
        assert_eq!(parse(&hello), Parsed::NotOurs);
    }
}
