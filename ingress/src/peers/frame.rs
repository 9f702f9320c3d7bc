//! What stands on the wire between two nodes, and whose turn it is. Pure.
//!
//! ```text
//!  u32 length of what follows | u8 kind | u8 stream | payload          big endian
//! ```
//! A message is cut into frames; streams take turns, frame by frame. Each stream may have so many frames on the way that its
//! reader has not taken ([`WINDOW`]): a reader that stands still stops its own stream and no other.

use std::collections::VecDeque;

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    pub(super) stream: u8,
    pub(super) payload: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A part of a message; more follow.
    Part,
    /// The last part of a message.
    End,
    /// The reader took so many frames of the stream: u32.
    Credit,
    /// A control message: JSON.
    Control,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Broken {
    #[error("a frame of {0} bytes; at most {LONGEST} are allowed")]
    TooLong(usize),
    #[error("a frame of an unknown kind ({0})")]
    Kind(u8),
    #[error("a message of more than {MAX_MESSAGE} bytes")]
    Message,
    #[error("stream {0} sent more than its reader has room for, or does not exist")]
    Stream(u8),
    #[error("a frame with a payload that means nothing")]
    Payload,
}

impl Kind {
    const ALL: [(u8, Self); 4] = [(0, Self::Part), (1, Self::End), (2, Self::Credit), (3, Self::Control)];
}

impl Frame {
    pub(super) fn encode(&self, to: &mut Vec<u8>) {
        let Self { kind, stream, payload } = self;
        let length = u32::try_from(payload.len() + 2).unwrap_or(u32::MAX);
        let kind = Kind::ALL.iter().find(|(_, known)| known == kind).map_or(0, |(word, _)| *word);
        to.extend(length.to_be_bytes());
        to.extend([kind, *stream]);
        to.extend(payload);
    }

    /// # Errors
    /// The length, if no frame has it.
    pub(super) fn length(header: [u8; 4]) -> Result<usize, Broken> {
        let length = usize::try_from(u32::from_be_bytes(header)).unwrap_or(usize::MAX);
        if (2..=LONGEST).contains(&length) { Ok(length) } else { Err(Broken::TooLong(length)) }
    }

    /// From all that follows the length.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Broken> {
        let [kind, stream, payload @ ..] = bytes else { return Err(Broken::Payload) };
        let (_, known) = Kind::ALL.into_iter().find(|(word, _)| word == kind).ok_or(Broken::Kind(*kind))?;
        Ok(Self { kind: known, stream: *stream, payload: payload.to_vec() })
    }
}

/// What waits to be sent.
#[derive(Debug)]
pub(super) struct Outbox {
    control: VecDeque<Frame>,
    streams: Vec<Waiting>,
    turn: usize,
}

#[derive(Debug, Default)]
struct Waiting {
    messages: VecDeque<Vec<u8>>,
    /// Bytes of the first message that are gone.
    sent: usize,
    bytes: usize,
    /// Frames that the reader has room for.
    credit: u32,
}

impl Outbox {
    pub(super) fn new(streams: usize) -> Self {
        let new = || Waiting { credit: WINDOW, ..Waiting::default() };
        Self { control: VecDeque::new(), streams: (0..streams).map(|_| new()).collect(), turn: 0 }
    }

    /// False: the stream's queue is full, or there is no such stream.
    pub(super) fn push(&mut self, stream: u8, message: Vec<u8>) -> bool {
        let Some(waiting) = self.streams.get_mut(usize::from(stream)) else { return false };
        let is_full = waiting.bytes + message.len() > MAX_WAITING && !waiting.messages.is_empty();
        if is_full || message.len() > MAX_MESSAGE {
            return false;
        }
        waiting.bytes += message.len();
        waiting.messages.push_back(message);
        true
    }

    pub(super) fn control(&mut self, payload: Vec<u8>) {
        self.control.push_back(Frame { kind: Kind::Control, stream: 0, payload });
    }

    /// Tells the other side that `frames` of a stream were taken.
    pub(super) fn taken(&mut self, stream: u8, frames: u32) {
        self.control.push_back(Frame { kind: Kind::Credit, stream, payload: frames.to_be_bytes().to_vec() });
    }

    /// # Errors
    /// Nobody gave that credit.
    pub(super) fn credit(&mut self, stream: u8, payload: &[u8]) -> Result<(), Broken> {
        let waiting = self.streams.get_mut(usize::from(stream)).ok_or(Broken::Stream(stream))?;
        let frames = payload.try_into().map(u32::from_be_bytes).map_err(|_| Broken::Payload)?;
        waiting.credit = waiting.credit.checked_add(frames).filter(|c| *c <= WINDOW).ok_or(Broken::Payload)?;
        Ok(())
    }

    /// What is to be sent next: control first, then the streams in turn.
    pub(super) fn next(&mut self) -> Option<Frame> {
        if let Some(frame) = self.control.pop_front() {
            return Some(frame);
        }
        let count = self.streams.len();
        for step in 0..count {
            let at = (self.turn + step) % count;
            let Some(frame) = self.streams[at].next(u8::try_from(at).unwrap_or(u8::MAX)) else { continue };
            self.turn = at + 1;
            return Some(frame);
        }
        None
    }
}

impl Waiting {
    fn next(&mut self, stream: u8) -> Option<Frame> {
        let message = self.messages.front().filter(|_| self.credit > 0)?;
        let end = (self.sent + PART).min(message.len());
        let (payload, is_last) = (message[self.sent..end].to_vec(), end == message.len());
        self.credit -= 1;
        self.sent = end;
        if is_last {
            self.bytes -= message.len();
            self.messages.pop_front();
            self.sent = 0;
        }
        Some(Frame { kind: if is_last { Kind::End } else { Kind::Part }, stream, payload })
    }
}

/// Parts of one stream's message, until it is whole.
#[derive(Debug, Default)]
pub(super) struct Assembly {
    bytes: Vec<u8>,
    frames: u32,
}

impl Assembly {
    /// The whole message and the frames that it came in, with its last part.
    ///
    /// # Errors
    /// It is too long.
    pub(super) fn add(&mut self, part: &[u8], is_last: bool) -> Result<Option<(Vec<u8>, u32)>, Broken> {
        if self.bytes.len() + part.len() > MAX_MESSAGE {
            return Err(Broken::Message);
        }
        self.bytes.extend(part);
        self.frames += 1;
        Ok(is_last.then(|| (std::mem::take(&mut self.bytes), std::mem::take(&mut self.frames))))
    }
}

/// Bytes of a message in one frame.
const PART: usize = 16 * 1024;
/// Of kind, stream and payload.
const LONGEST: usize = PART + 2;
/// Frames; a message always fits, or it would never arrive.
pub(super) const WINDOW: u32 = 256;
pub(super) const MAX_MESSAGE: usize = PART * WINDOW as usize;
/// Bytes that may wait in one stream's queue.
const MAX_WAITING: usize = 2 * MAX_MESSAGE;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_whose_reader_stands_still_stops_no_other() {
        let mut outbox = Outbox::new(2);
        for _ in 0..3 {
            assert!(outbox.push(0, vec![0; MAX_MESSAGE / 2]));
        }
        let mut sent = 0;
        while outbox.next().is_some() {
            sent += 1;
        }
        assert_eq!(sent, WINDOW);
        assert!(outbox.push(1, b"hello".to_vec()));
        let frame = outbox.next().expect("the other stream goes on");
        assert_eq!((frame.stream, frame.payload.as_slice()), (1, b"hello".as_slice()));
        assert_eq!(outbox.next(), None);
        outbox.credit(0, &1u32.to_be_bytes()).expect("credit");
        assert_eq!(outbox.next().map(|frame| frame.stream), Some(0));
    }

    #[test]
    fn streams_take_turns_and_control_goes_first() {
        let mut outbox = Outbox::new(2);
        assert!(outbox.push(0, vec![1; PART * 2]) && outbox.push(1, vec![2; PART * 2]));
        outbox.control(b"ping".to_vec());
        let order: Vec<_> = std::iter::from_fn(|| outbox.next()).map(|frame| (frame.kind, frame.stream)).collect();
        use Kind::{Control, End, Part};
        assert_eq!(order, [(Control, 0), (Part, 0), (Part, 1), (End, 0), (End, 1)]);
    }

    #[test]
    fn a_message_comes_out_as_it_went_in_and_no_longer_than_allowed() {
        let message: Vec<u8> = (0..PART * 2 + 5).map(|n| (n % 251) as u8).collect();
        let (mut outbox, mut assembly) = (Outbox::new(1), Assembly::default());
        assert!(outbox.push(0, message.clone()));
        let mut whole = None;
        while let Some(frame) = outbox.next() {
            let mut wire = Vec::new();
            frame.encode(&mut wire);
            let (length, rest) = wire.split_first_chunk().expect("a length");
            assert_eq!(Frame::length(*length), Ok(rest.len()));
            let read = Frame::decode(rest).expect("a frame");
            whole = assembly.add(&read.payload, read.kind == Kind::End).expect("short enough");
        }
        assert_eq!(whole, Some((message, 3)));
        let mut endless = Assembly::default();
        let refused = (0..=WINDOW).find_map(|_| endless.add(&[0; PART], false).err());
        assert_eq!(refused, Some(Broken::Message));
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(Frame::length(u32::MAX.to_be_bytes()).is_err() && Frame::length([0, 0, 0, 1]).is_err());
        assert_eq!(Frame::decode(&[9, 0]), Err(Broken::Kind(9)));
        let mut outbox = Outbox::new(1);
        assert_eq!(outbox.credit(0, &1u32.to_be_bytes()), Err(Broken::Payload));
        assert_eq!(outbox.credit(7, &1u32.to_be_bytes()), Err(Broken::Stream(7)));
        assert!(!outbox.push(1, Vec::new()) && !outbox.push(0, vec![0; MAX_MESSAGE + 1]));
    }
}
