//! Real hellos, hellos put together by hand, and rustls as a second opinion.

use std::sync::Arc;

use proptest::prelude::*;
use rustls::crypto::aws_lc_rs::{self, kx_group};
use rustls::pki_types::ServerName;
use rustls::server::Acceptor;

use super::*;

/// A captured first flight; tests/data/client_hello/README.md says from which client.
struct Capture {
    client: &'static str,
    bytes: &'static [u8],
    sni: Option<&'static str>,
    alpn: Option<&'static str>,
}

macro_rules! capture {
    ($client:literal, $sni:expr, $alpn:expr) => {
        Capture {
            client: $client,
            bytes: include_bytes!(concat!("../../../../tests/data/client_hello/", $client, ".bin")),
            sni: $sni,
            alpn: $alpn,
        }
    };
}

const CAPTURED: &[Capture] = &[
    capture!("chromium", Some("shop.example.com"), Some("h2,http/1.1")),
    capture!("curl-h1", Some("shop.example.com"), Some("http/1.1")),
    capture!("curl-h2", Some("shop.example.com"), Some("h2,http/1.1")),
    capture!("node", Some("api.example.com"), Some("http/1.1")),
    capture!("openssl-no-sni", None, None),
    capture!("openssl-tls12", Some("legacy.example.com"), None),
    capture!("openssl-tls13", Some("app.example.com"), Some("h2,http/1.1")),
    capture!("python", Some("www.example.com"), None),
    capture!("rustls-post-quantum", Some("pq.example.com"), Some("h2,http/1.1")),
];

/// RFC 6066 section 3.
const HOST_NAME: u8 = 0;

/// A client that has sent nothing; its one key share is the hybrid one of 1.2 kB if `post_quantum`.
fn rustls_client(host: &'static str, alpn: &[&str], post_quantum: bool) -> rustls::ClientConnection {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = if post_quantum { vec![kx_group::X25519MLKEM768] } else { vec![kx_group::X25519] };
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .expect("the provider knows the default versions")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let name = ServerName::try_from(host).expect("a valid name");
    rustls::ClientConnection::new(Arc::new(config), name).expect("a valid configuration")
}

fn rustls_hello(host: &'static str, alpn: &[&str], post_quantum: bool) -> Vec<u8> {
    let mut client = rustls_client(host, alpn, post_quantum);
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).expect("a Vec takes everything");
    bytes
}

/// What rustls reads from the same bytes: its server name, or `Err` where it sees no hello.
fn second_opinion(mut bytes: &[u8]) -> Result<Option<String>, ()> {
    let mut acceptor = Acceptor::default();
    while !bytes.is_empty() {
        acceptor.read_tls(&mut bytes).map_err(drop)?;
        if let Some(accepted) = acceptor.accept().map_err(drop)? {
            return Ok(accepted.client_hello().server_name().map(str::to_owned));
        }
    }
    Err(())
}

fn vec16(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).expect("a short test vector");
    [&length.to_be_bytes(), bytes].concat()
}

fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &vec16(data)].concat()
}

fn server_name_of(name: &[u8]) -> Vec<u8> {
    extension(0, &vec16(&[&[HOST_NAME][..], &vec16(name)].concat()))
}

/// A handshake message with these extensions, one after the other.
fn message_with(extensions: &[u8]) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
    body.extend(vec16(extensions));
    handshake(&body)
}

fn handshake(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).expect("a short test message").to_be_bytes();
    [&[CLIENT_HELLO], &length[1..], body].concat()
}

/// Cut into records of these sizes, the last one repeated.
fn records(mut message: &[u8], sizes: &[usize]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut sizes = sizes.iter().chain(std::iter::repeat(sizes.last().expect("at least one size")));
    while !message.is_empty() {
        let size = message.len().min(*sizes.next().expect("the last repeats"));
        let (fragment, left) = message.split_at(size);
        bytes.extend([HANDSHAKE_RECORD, 3, 1]);
        bytes.extend(vec16(fragment));
        message = left;
    }
    bytes
}

fn one_record(extensions: &[u8]) -> Vec<u8> {
    records(&message_with(extensions), &[usize::from(MAX_FRAGMENT)])
}

fn sni(outcome: Outcome) -> Option<String> {
    match outcome {
        Outcome::Hello(hello) => hello.sni.map(|sni| sni.to_string()),
        Outcome::NeedMore | Outcome::NotTls(_) => panic!("no hello but {outcome:?}"),
    }
}

fn refusal(outcome: Outcome) -> NotTls {
    match outcome {
        Outcome::NotTls(reason) => reason,
        Outcome::NeedMore | Outcome::Hello(_) => panic!("not refused but {outcome:?}"),
    }
}

#[test]
fn real_clients_are_read() {
    for Capture { client, bytes, sni, alpn } in CAPTURED {
        let Outcome::Hello(hello) = parse(bytes) else { panic!("{client}: no hello") };
        assert_eq!(hello.sni.as_ref().map(Sni::as_str), *sni, "{client}");
        assert_eq!(hello.alpn.as_deref(), *alpn, "{client}");
        assert_eq!(hello.length, bytes.len(), "{client}");
    }
}

#[test]
fn chromiums_post_quantum_hello_exceeds_a_segment() {
    let chromium = CAPTURED.iter().find(|capture| capture.client == "chromium").expect("it is listed");
    assert!(chromium.bytes.len() > 1460, "{} bytes fit one segment", chromium.bytes.len());
}

#[test]
fn every_truncation_of_a_real_hello_needs_more() {
    for Capture { client, bytes, .. } in CAPTURED {
        for cut in 0..bytes.len() {
            assert_eq!(parse(&bytes[..cut]), Outcome::NeedMore, "{client} cut at {cut}");
        }
    }
}

#[test]
fn a_hello_in_records_of_one_byte_that_come_byte_by_byte_is_read() {
    for Capture { client, bytes, .. } in CAPTURED {
        let cut = records(&bytes[RECORD_HEADER..], &[1]);
        let mut reader = HelloReader::default();
        for end in 0..cut.len() {
            assert_eq!(reader.parse(&cut[..end]), Outcome::NeedMore, "{client} at {end}");
        }
        assert_eq!(sni(reader.parse(&cut)), sni(parse(bytes)), "{client}");
    }
}

#[test]
fn bytes_after_the_hello_are_not_counted() {
    let mut bytes = rustls_hello("app.example.com", &[], false);
    let length = bytes.len();
    bytes.extend([23, 3, 3, 0, 4, 1, 2, 3, 4]);
    assert!(matches!(parse(&bytes), Outcome::Hello(hello) if hello.length == length));
}

#[test]
fn a_hello_without_extensions_has_no_sni() {
    let mut body = vec![3, 1];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0, 0x2f, 1, 0]);
    assert_eq!(sni(parse(&records(&handshake(&body), &[100]))), None);
}

#[test]
fn names_that_are_no_dns_names_count_as_no_sni() {
    for name in [
        "192.0.2.7",
        "192.0.2.7.",
        "2001:db8::1",
        "[2001:db8::1]",
        "a b",
        "a\0.example.com",
        "bücher.example",
        ".",
        "a..b",
    ] {
        assert_eq!(sni(parse(&one_record(&server_name_of(name.as_bytes())))), None, "{name:?}");
    }
    assert_eq!(sni(parse(&one_record(&server_name_of(&[0xff, 0xfe])))), None);
}

#[test]
fn sni_is_lower_case_without_its_trailing_dot() {
    assert_eq!(sni(parse(&one_record(&server_name_of(b"App.Example.COM.")))).as_deref(), Some("app.example.com"));
}

#[test]
fn names_of_unknown_types_are_skipped() {
    let names = [&[9][..], &vec16(b"other"), &[HOST_NAME], &vec16(b"app.example.com")].concat();
    assert_eq!(sni(parse(&one_record(&extension(0, &vec16(&names))))).as_deref(), Some("app.example.com"));
}

#[test]
fn grease_and_encrypted_client_hello_are_ignored() {
    let extensions = [
        extension(0x0a0a, &[]),
        extension(0xfe0d, &[0; 180]),
        server_name_of(b"outer.example.com"),
        extension(16, &vec16(&[2, 0x0a, 0x0a, 2, b'h', b'2'])),
        extension(0xfafa, &[0]),
    ]
    .concat();
    let Outcome::Hello(hello) = parse(&one_record(&extensions)) else { panic!("no hello") };
    assert_eq!(hello.sni.as_ref().map(Sni::as_str), Some("outer.example.com"));
    assert_eq!(hello.alpn.as_deref(), Some("h2"));
}

#[test]
fn alpn_is_bounded_and_printable() {
    let names = ["x".repeat(60), "y".repeat(60), "h2".to_owned(), "a,b".to_owned(), "z".to_owned()];
    let list: Vec<u8> =
        names.iter().flat_map(|name| [&[u8::try_from(name.len()).expect("short")], name.as_bytes()].concat()).collect();
    let Outcome::Hello(hello) = parse(&one_record(&extension(16, &vec16(&list)))) else { panic!("no hello") };
    assert_eq!(hello.alpn, Some(format!("{},h2", names[0])));
}

#[test]
fn what_is_not_tls_is_known_at_the_first_wrong_byte() {
    for (bytes, reason) in [
        (&b"G"[..], NotTls::RecordType(b'G')),
        (b"\r", NotTls::RecordType(b'\r')),
        // SSLv2: two bytes of length, the highest bit set.
        (&[0x80], NotTls::RecordType(0x80)),
        (&[22, 2], NotTls::RecordVersion(2)),
        (&[22, 3, 1, 0x40, 1], NotTls::RecordLength(0x4001)),
        (&[22, 3, 1, 0, 0], NotTls::RecordLength(0)),
        (&[22, 3, 1, 1, 0, 2], NotTls::HandshakeType(2)),
        (&[22, 3, 1, 1, 0, 1, 1, 0, 0], NotTls::TooLarge),
    ] {
        assert_eq!(refusal(parse(bytes)), reason);
        assert_eq!(parse(&bytes[..bytes.len() - 1]), Outcome::NeedMore, "{reason} too early");
    }
}

#[test]
fn another_record_type_inside_a_hello_is_refused() {
    let mut bytes = records(&message_with(&[])[..10], &[10]);
    bytes.push(21);
    assert_eq!(refusal(parse(&bytes)), NotTls::RecordType(21));
}

#[test]
fn a_hello_that_breaks_its_own_structure_is_refused() {
    let short_random = handshake(&[3, 3, 1, 2, 3]);
    let trailing = handshake(&[&message_with(&[])[HANDSHAKE_HEADER..], &[0]].concat());
    let twice = message_with(&[server_name_of(b"a.example.com"), server_name_of(b"b.example.com")].concat());
    let grease_twice = message_with(&[extension(0x1a1a, &[]), extension(0x1a1a, &[])].concat());
    let two_hosts = [&[0][..], &vec16(b"a.example.com"), &[0], &vec16(b"b.example.com")].concat();
    let two_hosts = message_with(&extension(0, &vec16(&two_hosts)));
    let empty_host = message_with(&server_name_of(b""));
    let empty_list = message_with(&extension(0, &vec16(&[])));
    let empty_alpn = message_with(&extension(16, &vec16(&[0])));
    let cut_extension = message_with(&[0, 0, 0, 9, 1]);
    for message in
        [short_random, trailing, twice, grease_twice, two_hosts, empty_host, empty_list, empty_alpn, cut_extension]
    {
        assert!(matches!(refusal(parse(&records(&message, &[5, 400]))), NotTls::Malformed(_)), "{message:?}");
    }
}

#[test]
fn a_second_message_in_the_record_is_refused_before_it_is_whole() {
    let mut message = message_with(&[]);
    message.extend([1, 0, 0]);
    let bytes = records(&message, &[400]);
    assert!(matches!(refusal(parse(&bytes[..RECORD_HEADER + HANDSHAKE_HEADER])), NotTls::Malformed(_)));
}

/// A hello of exactly `length` bytes, padded by RFC 7685's extension, its name last.
fn padded(length: usize) -> Vec<u8> {
    let name = server_name_of(b"app.example.com");
    let padding = length - message_with(&name).len() - 4;
    message_with(&[extension(21, &vec![0; padding]), name].concat())
}

#[test]
fn the_longest_hello_is_read_and_a_longer_one_is_not() {
    let longest = padded(MAX_HELLO);
    assert_eq!(sni(parse(&records(&longest, &[usize::from(MAX_FRAGMENT)]))).as_deref(), Some("app.example.com"));
    assert_eq!(sni(parse(&records(&longest, &[65]))).as_deref(), Some("app.example.com"));
    let longer = padded(MAX_HELLO + 1);
    assert_eq!(refusal(parse(&records(&longer, &[usize::from(MAX_FRAGMENT)]))), NotTls::TooLarge);
}

#[test]
fn need_more_ends_at_the_limit_however_the_records_are_cut() {
    for size in [1, 2, 3, 60, 1000] {
        let bytes = records(&padded(MAX_HELLO), &[size]);
        let mut reader = HelloReader::default();
        let answered = (0..bytes.len()).find(|&end| reader.parse(&bytes[..end]) != Outcome::NeedMore);
        if let Some(end) = answered {
            assert!(end <= MAX_RECEIVED, "records of {size}: answered at {end}");
            assert_eq!(reader.parse(&bytes[..end]), Outcome::NotTls(NotTls::TooLarge));
            assert_eq!(parse(&bytes), Outcome::NotTls(NotTls::TooLarge));
        } else {
            assert!(bytes.len() <= MAX_RECEIVED, "records of {size}: no answer to {} bytes", bytes.len());
        }
    }
}

#[test]
fn the_alert_is_what_rustls_calls_unrecognised_name() {
    let mut client = rustls_client("app.example.com", &[], false);
    client.read_tls(&mut &UNRECOGNIZED_NAME_ALERT[..]).expect("a slice");
    let error = client.process_new_packets().expect_err("the alert is fatal");
    assert_eq!(error, rustls::Error::AlertReceived(rustls::AlertDescription::UnrecognisedName));
}

proptest! {
    #[test]
    fn any_split_gives_the_same_answer(
        index in 0..CAPTURED.len(),
        sizes in prop::collection::vec(1usize..700, 1..20),
        reads in prop::collection::vec(1usize..300, 1..50),
    ) {
        let bytes = records(&CAPTURED[index].bytes[RECORD_HEADER..], &sizes);
        let whole = parse(&bytes);
        prop_assert_eq!(sni(whole.clone()), CAPTURED[index].sni.map(str::to_owned));
        let mut reader = HelloReader::default();
        let mut end = 0;
        for read in reads.iter().cycle() {
            end = bytes.len().min(end + read);
            let outcome = reader.parse(&bytes[..end]);
            prop_assert_eq!(&outcome, &parse(&bytes[..end]));
            if end == bytes.len() {
                prop_assert_eq!(outcome, whole);
                break;
            }
            prop_assert_eq!(outcome, Outcome::NeedMore);
        }
    }

    #[test]
    fn random_bytes_never_panic_and_never_wait_for_ever(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let mut reader = HelloReader::default();
        for end in (0..bytes.len()).step_by(97) {
            prop_assert_eq!(reader.parse(&bytes[..end]), parse(&bytes[..end]));
        }
    }

    /// What both accept has the same name in both: no route is chosen by a name that the backend does not see.
    #[test]
    fn a_damaged_hello_is_refused_or_means_what_rustls_reads(
        index in 0..CAPTURED.len(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = CAPTURED[index].bytes.to_vec();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let (Outcome::Hello(hello), Ok(name)) = (parse(&bytes), second_opinion(&bytes)) {
            let name = name.and_then(|name| Sni::parse(&name).ok());
            prop_assert_eq!(hello.sni, name);
        }
    }

    #[test]
    fn rustls_hellos_are_read_whatever_the_records(
        post_quantum: bool,
        sizes in prop::collection::vec(1usize..2000, 1..10),
    ) {
        let bytes = rustls_hello("pq.example.com", &["h2", "http/1.1"], post_quantum);
        let cut = records(&bytes[RECORD_HEADER..], &sizes);
        prop_assert_eq!(sni(parse(&cut)), Some("pq.example.com".to_owned()));
        prop_assert_eq!(second_opinion(&cut), Ok(Some("pq.example.com".to_owned())));
    }
}
