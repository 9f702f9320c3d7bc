use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;

use super::*;
use crate::providers::registration::book::tests::simple;

fn provider() -> ProviderName {
    ProviderName::new("platform")
}

fn put(host: usize, port: u16) -> Record {
    Record::Put(simple(&format!("s{host}.example.com"), "one", &format!("10.0.0.1:{}", port.max(1))))
}

fn apply(book: &mut Book, record: &Record) {
    match record {
        Record::Version(_) => {}
        Record::Put(registration) => book.put(registration.clone().into()),
        Record::Remove(host) => book.remove(&SniPattern::parse(host).expect("a host")),
        Record::Bury { host, stamp, owner } => {
            let grave = Grave { stamp: stamp.clone(), owner: owner.clone() };
            book.put_grave(&SniPattern::parse(host).expect("a host"), grave);
        }
        Record::Same { peer, at } => book.note_same(peer.clone(), *at),
    }
}

fn records() -> impl Strategy<Value = Vec<Record>> {
    let put = (0..5usize, 1..9u16).prop_map(|(host, port)| put(host, port));
    let remove = (0..5usize).prop_map(|host| Record::Remove(format!("s{host}.example.com")));
    let stamp = |ms| Stamp { ms, count: 0, node: "a".into() };
    let bury = (0..5usize, 1..9u64, prop::option::of("[a-z]{3}")).prop_map(move |(host, ms, owner)| Record::Bury {
        host: format!("s{host}.example.com"),
        stamp: stamp(ms),
        owner,
    });
    prop::collection::vec(prop_oneof![3 => put, 1 => remove, 1 => bury], 0..12)
}

/// The file of these records, and for each number of lines its length and what it says.
fn written(records: &[Record]) -> (Vec<u8>, Vec<(usize, Book)>) {
    let mut bytes = line(&Record::Version(VERSION));
    let mut book = Book::default();
    let mut states = vec![(0, book.clone()), (bytes.len(), book.clone())];
    for record in records {
        bytes.extend(line(record));
        apply(&mut book, record);
        states.push((bytes.len(), book.clone()));
    }
    (bytes, states)
}

proptest! {
    /// A kill at any moment of a write leaves a prefix: all that was acknowledged before it is there, and nothing else.
    #[test]
    fn any_prefix_of_the_file_says_what_was_acknowledged_up_to_there(records in records()) {
        let (bytes, states) = written(&records);
        for length in 0..=bytes.len() {
            let recovered = recover(&bytes[..length]).expect("our own version");
            let (_, expected) = states.iter().rev().find(|(end, _)| *end <= length).expect("the empty file");
            prop_assert_eq!(&recovered.book, expected, "at byte {}", length);
            prop_assert_eq!(recovered.damaged, 0, "at byte {}", length);
        }
    }

    /// A power failure may leave anything behind the last synced byte.
    #[test]
    fn garbage_behind_the_last_line_changes_nothing(records in records(), tail in prop::collection::vec(any::<u8>(), 0..80)) {
        let (mut bytes, states) = written(&records);
        let good = bytes.len();
        bytes.extend(tail);
        let recovered = recover(&bytes).expect("our own version");
        prop_assert_eq!((recovered.good, recovered.damaged), (good, 0));
        prop_assert_eq!(&recovered.book, &states[states.len() - 1].1);
    }

    #[test]
    fn a_changed_byte_costs_no_more_than_its_line(records in records(), at in any::<prop::sample::Index>(), with in any::<u8>()) {
        let (mut bytes, _) = written(&records);
        let at = at.index(bytes.len());
        let line_of_at = bytes[..at].iter().filter(|byte| **byte == b'\n').count();
        // A line end that is lost costs the next line too, one that is made costs nothing more.
        prop_assume!(bytes[at] != with && bytes[at] != b'\n' && with != b'\n');
        // The checksum's hex digits have no case.
        prop_assume!(!bytes[at].eq_ignore_ascii_case(&with));
        bytes[at] = with;
        let mut expected = Book::default();
        let others = records.iter().enumerate().filter(|(n, _)| n + 1 != line_of_at);
        others.for_each(|(_, record)| apply(&mut expected, record));
        prop_assert_eq!(recover(&bytes).expect("our own version").book, expected);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = recover(&bytes);
    }
}

#[test]
fn what_was_appended_is_there_after_a_restart() {
    let state = tempfile::tempdir().expect("a directory");
    let (mut journal, recovered) = Journal::open(state.path(), &provider()).expect("a new journal");
    assert_eq!(recovered.book, Book::default());
    let mut book = Book::default();
    for record in [put(1, 1), put(2, 2), Record::Remove("s1.example.com".into())] {
        apply(&mut book, &record);
        journal.append(&[record], &book).expect("appended");
    }
    drop(journal);
    let (journal, recovered) = Journal::open(state.path(), &provider()).expect("the journal");
    assert_eq!(recovered.book, book);
    let mode = fs::metadata(&journal.path).expect("a file").permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
}

#[test]
fn a_torn_tail_is_cut_off_before_anything_is_appended() {
    let state = tempfile::tempdir().expect("a directory");
    let (mut journal, _) = Journal::open(state.path(), &provider()).expect("a new journal");
    let mut book = Book::default();
    apply(&mut book, &put(1, 1));
    journal.append(&[put(1, 1)], &book).expect("appended");
    let path = journal.path.clone();
    drop(journal);
    let mut bytes = fs::read(&path).expect("the file");
    bytes.extend(&line(&put(2, 2))[..40]);
    fs::write(&path, bytes).expect("a torn file");

    let (mut journal, recovered) = Journal::open(state.path(), &provider()).expect("the journal");
    assert_eq!(recovered.book, book);
    apply(&mut book, &put(3, 3));
    journal.append(&[put(3, 3)], &book).expect("appended");
    drop(journal);
    let (_, recovered) = Journal::open(state.path(), &provider()).expect("the journal");
    assert_eq!((recovered.book, recovered.damaged), (book, 0));
}

#[test]
fn damage_in_the_middle_is_left_out_and_kept_aside() {
    let state = tempfile::tempdir().expect("a directory");
    let (mut journal, _) = Journal::open(state.path(), &provider()).expect("a new journal");
    let mut book = Book::default();
    for n in 1..4 {
        apply(&mut book, &put(n, 1));
        journal.append(&[put(n, 1)], &book).expect("appended");
    }
    let path = journal.path.clone();
    drop(journal);
    let damaged = fs::read_to_string(&path).expect("the file").replacen("s2.example.com", "s9.example.com", 1);
    fs::write(&path, &damaged).expect("a damaged file");
    let (journal, recovered) = Journal::open(state.path(), &provider()).expect("the journal");
    let hosts: Vec<_> = recovered.book.iter().map(|registration| registration.host.to_string()).collect();
    assert_eq!((hosts, recovered.damaged), (vec!["s1.example.com".into(), "s3.example.com".into()], 1));
    assert_eq!(fs::read_to_string(path.with_extension("damaged")).expect("the copy"), damaged);
    drop(journal);
    let (_, recovered) = Journal::open(state.path(), &provider()).expect("the journal");
    assert_eq!(recovered.damaged, 0);
}

#[test]
fn a_journal_that_grows_is_written_anew() {
    let state = tempfile::tempdir().expect("a directory");
    let (mut journal, _) = Journal::open(state.path(), &provider()).expect("a new journal");
    let mut book = Book::default();
    let mut largest = 0;
    for round in 0..20u16 {
        let records: Vec<_> = (0..1000).map(|n| put(n % 3, round + 1)).collect();
        records.iter().for_each(|record| apply(&mut book, record));
        journal.append(&records, &book).expect("appended");
        largest = largest.max(fs::metadata(&journal.path).expect("a file").len());
    }
    assert!(largest < 2 << 20, "{largest} bytes for three registrations");
    drop(journal);
    let (_, recovered) = Journal::open(state.path(), &provider()).expect("the journal");
    assert_eq!(recovered.book, book);
}

#[test]
fn after_a_failed_write_the_next_change_writes_all_anew() {
    let state = tempfile::tempdir().expect("a directory");
    let (mut journal, _) = Journal::open(state.path(), &provider()).expect("a new journal");
    let mut book = Book::default();
    apply(&mut book, &put(1, 1));
    // Nobody can write to a file that is open for reading: as good as a full disk.
    journal.file = Some(File::open(&journal.path).expect("the file"));
    journal.append(&[put(1, 1)], &book).expect_err("a disk that takes nothing");
    apply(&mut book, &put(2, 2));
    journal.append(&[put(2, 2)], &book).expect("the disk takes it again");
    drop(journal);
    let (_, recovered) = Journal::open(state.path(), &provider()).expect("the journal");
    assert_eq!(recovered.book, book);
}

#[test]
fn a_newer_journal_is_not_touched() {
    let state = tempfile::tempdir().expect("a directory");
    let (journal, _) = Journal::open(state.path(), &provider()).expect("a new journal");
    let path = journal.path.clone();
    drop(journal);
    let newer = line(&Record::Version(VERSION + 1));
    fs::write(&path, &newer).expect("a newer file");
    let error = Journal::open(state.path(), &provider()).expect_err("it is newer");
    assert!(error.to_string().contains("newer version"), "{error}");
    assert_eq!(fs::read(&path).expect("the file"), newer);
}

#[test]
fn a_journal_that_somebody_removed_is_written_anew() {
    let state = tempfile::tempdir().expect("a directory");
    let (mut journal, _) = Journal::open(state.path(), &provider()).expect("a new journal");
    let mut book = Book::default();
    apply(&mut book, &put(1, 1));
    journal.append(&[put(1, 1)], &book).expect("appended");
    fs::remove_file(&journal.path).expect("removed");
    apply(&mut book, &put(2, 2));
    journal.append(&[put(2, 2)], &book).expect("written anew");
    drop(journal);
    let (_, recovered) = Journal::open(state.path(), &provider()).expect("the journal");
    assert_eq!(recovered.book, book);
}
