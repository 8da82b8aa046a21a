//! An object store for tens of gigabytes of patterned data in a file of a few: runs of one 8-byte word are kept as a count.
//!
//! For measuring bounds only: what it keeps does not count as the node's memory (one small index entry an object), and it
//! survives `kill -9` of its process. The file is a log of records: head, key, encoded object; a delete is a record too, and
//! gives the space back. A record that a kill cut short is the last one, and is cut off when the file is opened.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use object_store::path::Path;
use object_store::{
    Attributes, CopyMode, CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

const NAME: &str = "pattern";
const MAGIC: u64 = u64::from_le_bytes(*b"LamPattn");
/// magic, key length, object length, encoded length (u64::MAX: deleted), time in ms.
const HEAD: usize = 40;
const DELETED: u64 = u64::MAX;
/// Runs shorter than this many words are kept as they are.
const SHORTEST_RUN: usize = 4;

#[derive(Debug, Clone, Copy)]
struct Entry {
    /// Of the encoded bytes.
    offset: u64,
    encoded: u64,
    size: u64,
    time_ms: u64,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<Path, Entry>,
    end: u64,
}

/// See the file's header.
#[derive(Debug, Clone)]
pub(crate) struct PatternStore {
    file: Arc<File>,
    state: Arc<Mutex<State>>,
}

impl fmt::Display for PatternStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(NAME)
    }
}

fn failed(source: io::Error) -> Error {
    Error::Generic { store: NAME, source: Box::new(source) }
}

impl PatternStore {
    /// Opens or makes the file.
    pub(crate) fn open(path: PathBuf) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut state = State::default();
        let length = file.metadata()?.len();
        while let Some((key, entry, next)) = record(&file, state.end, length)? {
            if entry.encoded == DELETED {
                state.objects.remove(&key);
            } else {
                state.objects.insert(key, entry);
            }
            state.end = next;
        }
        file.set_len(state.end)?;
        Ok(Self { file: Arc::new(file), state: Arc::new(Mutex::new(state)) })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append(&self, state: &mut State, key: &Path, size: u64, encoded: Option<&[u8]>) -> io::Result<Entry> {
        let time_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        let length = encoded.map_or(DELETED, |bytes| bytes.len() as u64);
        let mut bytes = Vec::with_capacity(HEAD + 256 + encoded.map_or(0, <[u8]>::len));
        for word in [MAGIC, key.as_ref().len() as u64, size, length, time_ms] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(key.as_ref().as_bytes());
        let head = bytes.len() as u64;
        bytes.extend_from_slice(encoded.unwrap_or_default());
        self.file.write_all_at(&bytes, state.end)?;
        let entry = Entry { offset: state.end + head, encoded: length, size, time_ms };
        state.end += bytes.len() as u64;
        Ok(entry)
    }

    fn entry(&self, key: &Path) -> Result<Entry> {
        let missing = || Error::NotFound { path: key.to_string(), source: "no such object".into() };
        self.lock().objects.get(key).copied().ok_or_else(missing)
    }

    fn keep(&self, key: &Path, object: &[u8], mode: &PutMode) -> Result<PutResult> {
        let encoded = encode(object);
        let mut state = self.lock();
        if *mode == PutMode::Create && state.objects.contains_key(key) {
            return Err(Error::AlreadyExists { path: key.to_string(), source: "it exists".into() });
        }
        let entry = self.append(&mut state, key, object.len() as u64, Some(&encoded)).map_err(failed)?;
        if let Some(old) = state.objects.insert(key.clone(), entry) {
            self.punch(old);
        }
        Ok(PutResult { e_tag: None, version: None, extensions: Default::default() })
    }

    fn remove(&self, key: &Path) -> Result<()> {
        let mut state = self.lock();
        if let Some(old) = state.objects.remove(key) {
            self.append(&mut state, key, 0, None).map_err(failed)?;
            self.punch(old);
        }
        Ok(())
    }

    /// Gives the space of an old object back; where that is not possible it stays.
    fn punch(&self, old: Entry) {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: takes integers only; the range lies in the file.
        unsafe { libc::fallocate(self.file.as_raw_fd(), mode, old.offset.cast_signed(), old.encoded.cast_signed()) };
    }

    fn range(&self, entry: Entry, range: Range<u64>) -> Result<Bytes> {
        let mut encoded = vec![0; entry.encoded as usize];
        self.file.read_exact_at(&mut encoded, entry.offset).map_err(failed)?;
        Ok(decode(&encoded, range).into())
    }
}

/// The record at `at`: its key, its entry, and where the next one begins. `None` at the end or at a record cut short.
fn record(file: &File, at: u64, length: u64) -> io::Result<Option<(Path, Entry, u64)>> {
    if at + HEAD as u64 > length {
        return Ok(None);
    }
    let mut head = [0; HEAD];
    file.read_exact_at(&mut head, at)?;
    let (words, _) = head.as_chunks::<8>();
    let word = |index: usize| words.get(index).map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let (key_length, size, encoded, time_ms) = (word(1), word(2), word(3), word(4));
    let offset = at + HEAD as u64 + key_length;
    let next = offset + if encoded == DELETED { 0 } else { encoded };
    if word(0) != MAGIC || next > length {
        return Ok(None);
    }
    let mut key = vec![0; key_length as usize];
    file.read_exact_at(&mut key, at + HEAD as u64)?;
    Ok(Some((Path::from(String::from_utf8_lossy(&key).into_owned()), Entry { offset, encoded, size, time_ms }, next)))
}

/// Pieces: count of words (u32), 1 for a run and 0 for words as they are (u32), then one word or all of them; the object's last
/// bytes that fill no word come last.
fn encode(object: &[u8]) -> Vec<u8> {
    let (words, rest) = object.as_chunks::<8>();
    let mut out = Vec::new();
    let mut literal = 0;
    let mut at = 0;
    let piece = |out: &mut Vec<u8>, words: &[[u8; 8]], run: u32| {
        out.extend_from_slice(&(words.len() as u32).to_le_bytes());
        out.extend_from_slice(&run.to_le_bytes());
        out.extend_from_slice(if run == 1 { words[0].as_slice() } else { words.as_flattened() });
    };
    while at < words.len() {
        let run = words[at..].iter().take_while(|word| **word == words[at]).count();
        if run >= SHORTEST_RUN {
            if literal < at {
                piece(&mut out, &words[literal..at], 0);
            }
            piece(&mut out, &words[at..at + run], 1);
            literal = at + run;
        }
        at += run;
    }
    if literal < words.len() {
        piece(&mut out, &words[literal..], 0);
    }
    out.extend_from_slice(rest);
    out
}

/// The bytes `range` of the object that was encoded.
fn decode(encoded: &[u8], range: Range<u64>) -> Vec<u8> {
    let (start, end) = (range.start as usize, range.end as usize);
    let mut out = Vec::with_capacity(end - start);
    let mut at = 0;
    let mut left = encoded;
    // Copies the part of [at, at + bytes) that is asked for.
    let mut take = |at: usize, bytes: usize, source: &dyn Fn(Range<usize>, &mut Vec<u8>)| {
        let (from, to) = (start.max(at), end.min(at + bytes));
        if from < to {
            source(from - at..to - at, &mut out);
        }
    };
    while let Some((count, rest)) = left.split_first_chunk::<4>()
        && let Some((run, rest)) = rest.split_first_chunk::<4>()
        && rest.len() >= 8
    {
        let bytes = u32::from_le_bytes(*count) as usize * 8;
        if u32::from_le_bytes(*run) == 1 {
            let (word, behind) = rest.split_at(8);
            take(at, bytes, &|part, out| out.extend(part.map(|index| word[index % 8])));
            left = behind;
        } else {
            let (words, behind) = rest.split_at(bytes.min(rest.len()));
            take(at, bytes, &|part, out| out.extend_from_slice(&words[part]));
            left = behind;
        }
        at += bytes;
    }
    take(at, left.len(), &|part, out| out.extend_from_slice(&left[part]));
    out
}

fn meta(key: &Path, entry: Entry) -> ObjectMeta {
    let time = UNIX_EPOCH + Duration::from_millis(entry.time_ms);
    ObjectMeta { location: key.clone(), last_modified: time.into(), size: entry.size, e_tag: None, version: None }
}

#[async_trait]
impl ObjectStore for PatternStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.keep(location, &Bytes::from(payload), &opts.mode)
    }

    async fn put_multipart_opts(&self, _location: &Path, _opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(Error::NotImplemented { operation: "multipart upload".into(), implementer: NAME.into() })
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let entry = self.entry(location)?;
        let meta = meta(location, entry);
        options.check_preconditions(&meta)?;
        let whole = 0..entry.size;
        let range = match &options.range {
            Some(range) => range.as_range(entry.size).map_err(|cause| Error::Generic { store: NAME, source: Box::new(cause) })?,
            None => whole,
        };
        let bytes = if options.head { Bytes::new() } else { self.range(entry, range.clone())? };
        let payload = GetResultPayload::Stream(stream::once(async { Ok(bytes) }).boxed());
        Ok(GetResult { payload, meta, range, attributes: Attributes::default(), extensions: Default::default() })
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let store = self.clone();
        locations.map(move |location| location.and_then(|location| store.remove(&location).map(|()| location))).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let prefix = prefix.cloned().unwrap_or_default();
        let state = self.lock();
        let below = |key: &&Path| key.prefix_match(&prefix).is_some_and(|mut rest| rest.next().is_some());
        let found: Vec<_> = state.objects.iter().filter(|(key, _)| below(key)).map(|(key, entry)| Ok(meta(key, *entry))).collect();
        stream::iter(found).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let prefix = prefix.cloned().unwrap_or_default();
        let mut result = ListResult { common_prefixes: Vec::new(), objects: Vec::new(), extensions: Default::default() };
        for (key, entry) in &self.lock().objects {
            let Some(mut rest) = key.prefix_match(&prefix) else { continue };
            let Some(first) = rest.next() else { continue };
            if rest.next().is_none() {
                result.objects.push(meta(key, *entry));
            } else {
                let child = prefix.clone().join(first);
                if result.common_prefixes.last() != Some(&child) {
                    result.common_prefixes.push(child);
                }
            }
        }
        Ok(result)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let entry = self.entry(from)?;
        let object = self.range(entry, 0..entry.size)?;
        let mode = if options.mode == CopyMode::Create { PutMode::Create } else { PutMode::Overwrite };
        self.keep(to, &object, &mode).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use object_store::path::Path;
    use object_store::{ObjectStore, ObjectStoreExt};
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::{PatternStore, decode, encode};

    #[test]
    fn any_range_of_an_encoded_object_is_what_it_was() {
        let mut random = SmallRng::seed_from_u64(3);
        for _ in 0..200 {
            let mut object: Vec<u8> = Vec::new();
            while object.len() < 3000 {
                let word = random.random::<u64>().to_le_bytes();
                (0..random.random_range(1..60)).for_each(|_| object.extend_from_slice(&word));
            }
            object.truncate(random.random_range(0..object.len()));
            let encoded = encode(&object);
            let start = random.random_range(0..=object.len());
            let end = random.random_range(start..=object.len());
            assert_eq!(decode(&encoded, start as u64..end as u64), object[start..end]);
        }
    }

    #[test]
    fn objects_survive_reopening_and_a_record_cut_short_is_not_one() {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("store");
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let patterned = vec![7_u8; 1 << 20];
        runtime.block_on(async {
            let store = PatternStore::open(path.clone()).expect("open");
            store.put(&Path::from("a/one"), patterned.clone().into()).await.expect("put");
            store.put(&Path::from("a/two"), b"hello".to_vec().into()).await.expect("put");
            store.put(&Path::from("b/three"), b"x".to_vec().into()).await.expect("put");
            store.delete(&Path::from("a/two")).await.expect("deleted");
            assert!(std::fs::metadata(&path).expect("there").len() < 1000, "a megabyte of one word takes a few bytes");
        });
        let whole = std::fs::metadata(&path).expect("there").len();
        let store = PatternStore::open(path.clone()).expect("open");
        runtime.block_on(async {
            assert_eq!(store.get(&Path::from("a/one")).await.expect("there").bytes().await.expect("bytes"), patterned);
            assert!(store.get(&Path::from("a/two")).await.is_err());
            assert_eq!(store.list(Some(&Path::from("a"))).count().await, 1);
            let tops = store.list_with_delimiter(None).await.expect("listed");
            assert_eq!(tops.common_prefixes, [Path::from("a"), Path::from("b")]);
            store.put(&Path::from("c"), vec![1; 900].into()).await.expect("put");
        });
        std::fs::OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(whole + 41)).expect("cut");
        drop(PatternStore::open(path.clone()).expect("open"));
        assert_eq!(std::fs::metadata(&path).expect("there").len(), whole);
    }
}
