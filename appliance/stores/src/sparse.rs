//! A store in memory for tests with more patterned data than memory: pages of 4 KiB that repeat one 8-byte word cost that word.
//!
//! Any other page is kept as it is. 40 GB of pages that repeat a word each take about 10 million × 16 B. It counts bytes on both sides.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use chrono::{DateTime, Utc};
use futures::stream::{self, BoxStream, StreamExt};
use object_store::path::Path;
use object_store::{
    CopyMode, CopyOptions, GetOptions, GetRange, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use parking_lot::RwLock;

use crate::upload::BufferedUpload;

const STORE: &str = "sparse";
const PAGE: usize = 4096;

/// Objects in memory, patterned pages compressed. Cheap to clone; clones share the objects.
#[derive(Clone, Default)]
pub struct SparseStore {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    objects: RwLock<BTreeMap<Path, Arc<Object>>>,
    next_tag: AtomicU64,
    logical: AtomicU64,
    held: AtomicU64,
    puts: AtomicU64,
}

/// 16 or 24 bytes a page, and the page where it is not one repeated word.
enum Page {
    Word(u64),
    Raw(Box<[u8]>),
}

struct Object {
    pages: Box<[Page]>,
    len: u64,
    tag: u64,
    modified: DateTime<Utc>,
}

impl Object {
    fn new(payload: PutPayload, tag: u64) -> Self {
        let len = payload.content_length() as u64;
        let mut pages = Vec::with_capacity((len as usize).div_ceil(PAGE));
        let mut pending: Vec<u8> = Vec::with_capacity(PAGE);
        for mut piece in payload {
            while !piece.is_empty() {
                let take = (PAGE - pending.len()).min(piece.len());
                pending.extend_from_slice(&piece.split_to(take));
                if pending.len() == PAGE {
                    pages.push(Page::of(&pending));
                    pending.clear();
                }
            }
        }
        if !pending.is_empty() {
            pages.push(Page::of(&pending));
        }
        Self { pages: pages.into(), len, tag, modified: Utc::now() }
    }

    fn held(&self) -> u64 {
        self.pages.iter().map(|page| size_of::<Page>() as u64 + page.boxed() as u64).sum()
    }

    fn read(&self, range: Range<u64>) -> Bytes {
        let mut out = BytesMut::with_capacity((range.end - range.start) as usize);
        let mut at = range.start;
        while at < range.end {
            let within = (at % PAGE as u64) as usize;
            let take = ((PAGE - within) as u64).min(range.end - at) as usize;
            match self.pages.get((at / PAGE as u64) as usize) {
                Some(Page::Raw(bytes)) => out.extend_from_slice(bytes.get(within..within + take).unwrap_or_default()),
                Some(Page::Word(word)) => {
                    let word = word.to_le_bytes();
                    out.extend((within..within + take).filter_map(|byte| word.get(byte % 8)));
                }
                None => break,
            }
            at += take as u64;
        }
        out.freeze()
    }
}

impl Page {
    fn of(bytes: &[u8]) -> Self {
        if let Some((first, rest)) = bytes.split_first_chunk::<8>()
            && bytes.len() == PAGE
            && rest.chunks_exact(8).all(|word| word == first)
        {
            return Self::Word(u64::from_le_bytes(*first));
        }
        Self::Raw(bytes.into())
    }

    fn boxed(&self) -> usize {
        match self {
            Self::Word(_) => 0,
            Self::Raw(bytes) => bytes.len(),
        }
    }
}

impl SparseStore {
    /// Bytes of all objects as their owners see them.
    #[must_use]
    pub fn logical_bytes(&self) -> u64 {
        self.shared.logical.load(Ordering::Relaxed)
    }

    /// Bytes of memory that their contents take.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        self.shared.held.load(Ordering::Relaxed)
    }

    /// Puts since it was made.
    #[must_use]
    pub fn puts(&self) -> u64 {
        self.shared.puts.load(Ordering::Relaxed)
    }

    fn find(&self, key: &Path) -> Result<Arc<Object>> {
        self.shared.objects.read().get(key).cloned().ok_or_else(|| not_found(key))
    }
}

impl Shared {
    /// Counts what comes and goes.
    fn account(&self, new: Option<&Object>, old: Option<&Object>) {
        if let Some(new) = new {
            self.logical.fetch_add(new.len, Ordering::Relaxed);
            self.held.fetch_add(new.held(), Ordering::Relaxed);
        }
        if let Some(old) = old {
            self.logical.fetch_sub(old.len, Ordering::Relaxed);
            self.held.fetch_sub(old.held(), Ordering::Relaxed);
        }
    }

    fn insert(&self, key: &Path, object: Arc<Object>, mode: &PutMode) -> Result<()> {
        let mut objects = self.objects.write();
        match (mode, objects.get(key)) {
            (PutMode::Create, Some(_)) => {
                return Err(object_store::Error::AlreadyExists { path: key.to_string(), source: "the object exists".into() });
            }
            (PutMode::Update(version), found)
                if version.e_tag.is_none() || version.e_tag != found.map(|object| object.tag.to_string()) =>
            {
                return Err(object_store::Error::Precondition {
                    path: key.to_string(),
                    source: "the object is another one or missing".into(),
                });
            }
            _ => {}
        }
        self.account(Some(&object), None);
        let old = objects.insert(key.clone(), object);
        self.account(None, old.as_deref());
        Ok(())
    }
}

fn not_found(key: &Path) -> object_store::Error {
    object_store::Error::NotFound { path: key.to_string(), source: "no such object".into() }
}

fn meta(key: &Path, object: &Object) -> ObjectMeta {
    ObjectMeta {
        location: key.clone(),
        last_modified: object.modified,
        size: object.len,
        e_tag: Some(object.tag.to_string()),
        version: None,
    }
}

fn resolve(range: &GetRange, size: u64) -> Result<Range<u64>> {
    range.as_range(size).map_err(|source| object_store::Error::Generic { store: STORE, source: Box::new(source) })
}

impl fmt::Debug for SparseStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SparseStore").field("logical_bytes", &self.logical_bytes()).finish_non_exhaustive()
    }
}

impl fmt::Display for SparseStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sparse")
    }
}

#[async_trait]
impl ObjectStore for SparseStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let tag = self.shared.next_tag.fetch_add(1, Ordering::Relaxed);
        self.shared.insert(location, Arc::new(Object::new(payload, tag)), &opts.mode)?;
        self.shared.puts.fetch_add(1, Ordering::Relaxed);
        Ok(PutResult { e_tag: Some(tag.to_string()), version: None, extensions: Default::default() })
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Ok(Box::new(BufferedUpload::new(Arc::new(self.clone()), location.clone(), opts)))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let object = self.find(location)?;
        let meta = meta(location, &object);
        options.check_preconditions(&meta)?;
        let range = match &options.range {
            Some(range) => resolve(range, meta.size)?,
            None => 0..meta.size,
        };
        let bytes = if options.head { Bytes::new() } else { object.read(range.clone()) };
        let payload = GetResultPayload::Stream(stream::once(async move { Ok(bytes) }).boxed());
        Ok(GetResult { payload, meta, range, attributes: Default::default(), extensions: Default::default() })
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let object = self.find(location)?;
        ranges.iter().map(|range| Ok(object.read(resolve(&GetRange::Bounded(range.clone()), object.len)?))).collect()
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let shared = Arc::clone(&self.shared);
        locations
            .map(move |location| {
                let location = location?;
                let old = shared.objects.write().remove(&location);
                shared.account(None, old.as_deref());
                Ok(location)
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let objects = self.shared.objects.read();
        let below = objects.iter().filter(|(key, _)| prefix.is_none_or(|prefix| is_below(key, prefix)));
        let found: Vec<Result<ObjectMeta>> = below.map(|(key, object)| Ok(meta(key, object))).collect();
        stream::iter(found).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let root = Path::default();
        let base = prefix.unwrap_or(&root);
        let mut common = std::collections::BTreeSet::new();
        let mut found = Vec::new();
        // Only the neighbourhood of the prefix is looked at: lookups of one key are frequent.
        let objects = self.shared.objects.read();
        for (key, object) in objects.range(base.clone()..).take_while(|(key, _)| key.as_ref().starts_with(base.as_ref())) {
            let Some(mut parts) = key.prefix_match(base) else { continue };
            match (parts.next(), parts.next()) {
                (Some(first), Some(_)) => drop(common.insert(base.clone().join(first))),
                (Some(_), None) => found.push(meta(key, object)),
                (None, _) => {}
            }
        }
        Ok(ListResult { common_prefixes: common.into_iter().collect(), objects: found, extensions: Default::default() })
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let source = self.find(from)?;
        let tag = self.shared.next_tag.fetch_add(1, Ordering::Relaxed);
        let payload = source.read(0..source.len).into();
        let mode = if options.mode == CopyMode::Create { PutMode::Create } else { PutMode::Overwrite };
        self.shared.insert(to, Arc::new(Object::new(payload, tag)), &mode)
    }
}

fn is_below(key: &Path, prefix: &Path) -> bool {
    key.prefix_match(prefix).is_some_and(|mut parts| parts.next().is_some())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use object_store::ObjectStoreExt;
    use object_store::path::Path;

    use super::SparseStore;
    use crate::conformance::{conformance, sample};

    #[tokio::test]
    async fn the_sparse_store_conforms() {
        let store = SparseStore::default();
        conformance(&store).await;
        assert_eq!((store.logical_bytes(), store.held_bytes()), (0, 0), "nothing is held for nothing");
    }

    #[tokio::test]
    async fn a_page_that_repeats_a_word_costs_sixteen_bytes() {
        let store = SparseStore::default();
        let words: Bytes = (0..1024_u64).flat_map(|page| page.to_le_bytes().repeat(512)).collect();
        store.put(&Path::from("words"), words.clone().into()).await.expect("put");
        assert_eq!(store.logical_bytes(), 4 << 20);
        assert_eq!(store.held_bytes(), 16 * 1024);
        let back = store.get_range(&Path::from("words"), 4090..8201).await.expect("a range");
        assert_eq!(back, words.slice(4090..8201));
        store.put(&Path::from("noise"), sample(1, 10_000).into()).await.expect("put");
        assert_eq!(store.held_bytes(), 16 * 1024 + 3 * 16 + 10_000);
    }
}
