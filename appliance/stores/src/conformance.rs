//! What every store here promises, as one suite: run it against any `ObjectStore` that is empty.
//!
//! It panics with a sentence when a promise is broken. What the trait leaves open stays open: deleting a missing object may be fine
//! or `NotFound`, conditional update may be unsupported.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::future::join_all;
use futures::stream::{self, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{Error, GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, UpdateVersion};

/// Bytes that differ from object to object and from page to page.
#[must_use]
pub fn sample(seed: u64, len: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes.into()
}

/// Runs every check. The store must be empty, and is left empty.
///
/// # Panics
/// When a promise is broken.
pub async fn conformance(store: &dyn ObjectStore) {
    assert!(names(store, None).await.is_empty(), "the suite wants an empty store");
    put_and_get(store).await;
    ranges(store).await;
    conditions(store).await;
    creation(store).await;
    listing(store).await;
    deletion(store).await;
    copying(store).await;
    uploads(store).await;
    concurrency(store).await;
    assert!(names(store, None).await.is_empty(), "the suite left something behind");
}

async fn names(store: &dyn ObjectStore, prefix: Option<&Path>) -> Vec<String> {
    let mut names: Vec<String> = store
        .list(prefix)
        .map_ok(|meta| meta.location.to_string())
        .try_collect()
        .await
        .unwrap_or_else(|error| panic!("a listing works: {error}"));
    names.sort();
    names
}

async fn read(store: &dyn ObjectStore, key: &Path) -> Bytes {
    let got = store.get(key).await.unwrap_or_else(|error| panic!("{key} is there: {error}"));
    got.bytes().await.unwrap_or_else(|error| panic!("{key} reads to its end: {error}"))
}

async fn put(store: &dyn ObjectStore, key: &Path, bytes: Bytes) {
    store.put(key, bytes.into()).await.unwrap_or_else(|error| panic!("{key} is put: {error}"));
}

async fn remove(store: &dyn ObjectStore, key: &Path) {
    store.delete(key).await.unwrap_or_else(|error| panic!("{key} is deleted: {error}"));
}

fn is_not_found<T>(result: Result<T, Error>) -> bool {
    matches!(result, Err(Error::NotFound { .. }))
}

async fn put_and_get(store: &dyn ObjectStore) {
    for len in [0, 1, 4095, 4096, 4097, 65_535, 65_536, 300_001, 4 << 20] {
        let key = Path::from(format!("sizes/deep/er/{len}"));
        assert!(is_not_found(store.get(&key).await), "what was never put is not found");
        assert!(is_not_found(store.head(&key).await), "nor has it a head");
        let bytes = sample(len as u64 + 1, len);
        put(store, &key, bytes.clone()).await;
        let got = store.get(&key).await.expect("what was put is there");
        assert_eq!(got.meta.size, len as u64, "the size is said");
        assert_eq!(got.meta.location, key, "and the key");
        assert_eq!(got.bytes().await.expect("it reads"), bytes, "{len} bytes come back");
        let head = store.head(&key).await.expect("a head");
        assert_eq!((head.size, head.location.clone()), (len as u64, key.clone()), "the head says the same");
        // In pieces of odd sizes.
        let pieces: PutPayload = bytes.chunks(10_007).map(Bytes::copy_from_slice).collect();
        store.put(&key, pieces).await.expect("an object in pieces is put");
        assert_eq!(read(store, &key).await, bytes, "and comes back whole");
        let other = sample(77, len / 2);
        put(store, &key, other.clone()).await;
        assert_eq!(read(store, &key).await, other, "an overwrite replaces");
        remove(store, &key).await;
    }
}

async fn ranges(store: &dyn ObjectStore) {
    let key = Path::from("ranges/object");
    for len in [10_000_usize, 200_003] {
        let bytes = sample(3, len);
        put(store, &key, bytes.clone()).await;
        let size = len as u64;
        for (from, to) in [(0, 1), (0, size), (4095, 4097), (size - 1, size), (5000, 5001), (1, size - 1), (8192, 8192 + 512)] {
            let expected = bytes.slice(from as usize..to as usize);
            assert_eq!(store.get_range(&key, from..to).await.expect("a range"), expected, "{from}..{to} of {len}");
        }
        let all = store.get_ranges(&key, &[0..10, 9000..9100, 5..7, 4000..9999]).await.expect("ranges");
        let expected: Vec<Bytes> = [0..10, 9000..9100, 5..7, 4000..9999].map(|range| bytes.slice(range)).into();
        assert_eq!(all, expected, "several ranges come in their order");
        assert!(store.get_ranges(&key, &[]).await.expect("no ranges").is_empty(), "no ranges, no bytes");
        let cut = store.get_range(&key, size - 5..size + 100).await.expect("a range past the end is cut");
        assert_eq!(cut, bytes.slice(len - 5..), "at the end");
        assert!(store.get_range(&key, size..size + 1).await.is_err(), "a range behind the end is an error");
        let get = |range| store.get_opts(&key, GetOptions { range: Some(range), ..GetOptions::default() });
        let suffix = get(GetRange::Suffix(100)).await.expect("a suffix").bytes().await.expect("reads");
        assert_eq!(suffix, bytes.slice(len - 100..), "a suffix is the end");
        let rest = get(GetRange::Offset(9000)).await.expect("an offset");
        assert_eq!(rest.range, 9000..size, "an offset says its range");
        assert_eq!(rest.bytes().await.expect("reads"), bytes.slice(9000..), "an offset is the rest");
    }
    assert!(is_not_found(store.get_ranges(&Path::from("ranges/none"), &[0..1, 5..6]).await), "ranges of nothing are not found");
    remove(store, &key).await;
}

async fn conditions(store: &dyn ObjectStore) {
    let key = Path::from("conditions/object");
    put(store, &key, sample(5, 100)).await;
    let tag = store.head(&key).await.expect("a head").e_tag.expect("stores here have tags");
    let with = |options: GetOptions| store.get_opts(&key, options);
    assert!(with(GetOptions::new().with_if_match(Some(tag.clone()))).await.is_ok(), "the right tag matches");
    let wrong = with(GetOptions::new().with_if_match(Some("wrong"))).await;
    assert!(matches!(wrong, Err(Error::Precondition { .. })), "the wrong tag does not");
    let same = with(GetOptions::new().with_if_none_match(Some(tag.clone()))).await;
    assert!(matches!(same, Err(Error::NotModified { .. })), "an unchanged object is not sent again");
    put(store, &key, sample(6, 100)).await;
    let changed = store.head(&key).await.expect("a head").e_tag;
    assert_ne!(changed, Some(tag.clone()), "an overwrite has another tag");
    let update = |e_tag| PutOptions::from(PutMode::Update(UpdateVersion { e_tag, version: None }));
    match store.put_opts(&key, sample(7, 10).into(), update(Some(tag))).await {
        Err(Error::Precondition { .. }) => {
            store.put_opts(&key, sample(8, 10).into(), update(changed)).await.expect("an update of what is there");
            assert_eq!(read(store, &key).await, sample(8, 10), "an update replaces");
        }
        Err(Error::NotImplemented { .. } | Error::NotSupported { .. }) => {}
        other => panic!("an update with an old tag is refused, not {other:?}"),
    }
    remove(store, &key).await;
}

async fn creation(store: &dyn ObjectStore) {
    let key = Path::from("creation/object");
    let create = || PutOptions::from(PutMode::Create);
    let puts = (0..8).map(|n| store.put_opts(&key, sample(n, 1000).into(), create()));
    let outcomes = join_all(puts).await;
    let winners: Vec<usize> = outcomes.iter().enumerate().filter(|(_, put)| put.is_ok()).map(|(n, _)| n).collect();
    assert_eq!(winners.len(), 1, "of eight that create one object one wins");
    assert!(
        outcomes.iter().filter_map(|put| put.as_ref().err()).all(|error| matches!(error, Error::AlreadyExists { .. })),
        "the others hear why"
    );
    assert_eq!(read(store, &key).await, sample(winners[0] as u64, 1000), "the winner's bytes are there");
    remove(store, &key).await;
    store.put_opts(&key, sample(9, 10).into(), create()).await.expect("a deleted object can be created");
    remove(store, &key).await;
}

async fn listing(store: &dyn ObjectStore) {
    let keys = ["a/b/1", "a/b/2", "a/bc/3", "a/d", "e"];
    for (n, key) in keys.iter().enumerate() {
        put(store, &Path::from(*key), sample(n as u64, 100 + n)).await;
    }
    let prefix = |text: &str| Path::from(text);
    assert_eq!(names(store, None).await, keys, "everything is listed");
    assert_eq!(names(store, Some(&prefix("a/b"))).await, ["a/b/1", "a/b/2"], "a prefix ends at a slash");
    assert!(names(store, Some(&prefix("a/d"))).await.is_empty(), "an object is not below itself");
    assert!(names(store, Some(&prefix("none"))).await.is_empty(), "nothing is below nothing");
    let sizes: BTreeMap<String, u64> =
        store.list(None).map_ok(|meta| (meta.location.to_string(), meta.size)).try_collect().await.expect("a listing");
    assert_eq!(sizes.get("a/d"), Some(&103), "sizes are those of the objects");
    let later: Vec<String> = store
        .list_with_offset(Some(&prefix("a")), &prefix("a/b/2"))
        .map_ok(|meta| meta.location.to_string())
        .try_collect()
        .await
        .expect("a listing from an offset");
    assert_eq!(later.len(), 2, "an offset skips what is before: {later:?}");
    let shallow = store.list_with_delimiter(Some(&prefix("a"))).await.expect("a shallow listing");
    let mut common: Vec<String> = shallow.common_prefixes.iter().map(Path::to_string).collect();
    common.sort();
    let objects: Vec<String> = shallow.objects.iter().map(|meta| meta.location.to_string()).collect();
    assert_eq!((common, objects), (vec!["a/b".into(), "a/bc".into()], vec!["a/d".to_owned()]), "one level only");
    let top = store.list_with_delimiter(None).await.expect("a shallow listing");
    assert_eq!(top.objects.iter().map(|meta| meta.location.as_ref()).collect::<Vec<_>>(), ["e"], "the top has one object");
    assert_eq!(top.common_prefixes, [prefix("a")], "and one prefix");
    for key in keys {
        remove(store, &Path::from(key)).await;
    }
}

async fn deletion(store: &dyn ObjectStore) {
    let key = Path::from("deletion/x/object");
    put(store, &key, sample(1, 5000)).await;
    remove(store, &key).await;
    assert!(is_not_found(store.get(&key).await), "a deleted object is gone");
    match store.delete(&key).await {
        Ok(()) | Err(Error::NotFound { .. }) => {}
        Err(error) => panic!("deleting nothing is fine: {error}"),
    }
    put(store, &key, sample(2, 100_000)).await;
    assert_eq!(read(store, &key).await, sample(2, 100_000), "a key can be used again");
    let many: Vec<Path> = (0..20).map(|n| Path::from(format!("deletion/many/{n}"))).collect();
    for many in &many {
        put(store, many, sample(1, 10)).await;
    }
    let deleted: Vec<Path> =
        store.delete_stream(stream::iter(many.clone()).map(Ok).boxed()).try_collect().await.expect("many are deleted");
    assert_eq!(deleted.len(), many.len(), "each is reported");
    assert_eq!(names(store, Some(&Path::from("deletion"))).await, [key.to_string()], "and gone");
    remove(store, &key).await;
}

async fn copying(store: &dyn ObjectStore) {
    let (from, to) = (Path::from("copying/from"), Path::from("copying/elsewhere/to"));
    for len in [1000, 100_000] {
        let bytes = sample(4, len);
        put(store, &from, bytes.clone()).await;
        store.copy(&from, &to).await.expect("a copy");
        assert_eq!(read(store, &to).await, bytes, "a copy has the same bytes");
        put(store, &from, sample(5, 10)).await;
        assert_eq!(read(store, &to).await, bytes, "and a life of its own");
        let refused = store.copy_if_not_exists(&from, &to).await;
        assert!(matches!(refused, Err(Error::AlreadyExists { .. })), "a copy that must not replace does not");
        store.copy(&from, &to).await.expect("a copy that replaces");
        assert_eq!(read(store, &to).await, sample(5, 10), "replaces");
        store.copy(&to, &to).await.expect("a copy onto itself");
        assert_eq!(read(store, &to).await, sample(5, 10), "changes nothing");
        remove(store, &to).await;
        store.rename(&from, &to).await.expect("a rename");
        assert!(is_not_found(store.get(&from).await), "the old name is gone");
        assert_eq!(read(store, &to).await, sample(5, 10), "the new one is there");
        remove(store, &to).await;
    }
    assert!(is_not_found(store.copy(&from, &to).await), "a copy of nothing is not found");
}

async fn uploads(store: &dyn ObjectStore) {
    let key = Path::from("uploads/object");
    let mut upload = store.put_multipart(&key).await.expect("an upload begins");
    for part in 0..3 {
        upload.put_part(sample(part, 50_000).into()).await.expect("a part");
    }
    assert!(is_not_found(store.get(&key).await), "an unfinished upload is no object");
    upload.complete().await.expect("an upload ends");
    let expected: Vec<u8> = (0..3).flat_map(|part| sample(part, 50_000)).collect();
    assert_eq!(read(store, &key).await, expected, "the parts are joined in order");
    remove(store, &key).await;
    let mut aborted = store.put_multipart(&key).await.expect("an upload begins");
    aborted.put_part(sample(1, 100).into()).await.expect("a part");
    aborted.abort().await.expect("an upload is given up");
    assert!(is_not_found(store.get(&key).await), "nothing remains of it");
}

/// Objects in directories that come and go under each other.
async fn concurrency(store: &dyn ObjectStore) {
    let work = (0..16_u64).map(|n| async move {
        let key = Path::from(format!("concurrency/{}/{}", n % 3, n));
        for round in 0..6 {
            let bytes = sample(n * 100 + round, 3000 + 30_000 * (n as usize % 3));
            put(store, &key, bytes.clone()).await;
            assert_eq!(read(store, &key).await, bytes, "a put is seen by the next read");
            remove(store, &key).await;
            assert!(is_not_found(store.head(&key).await), "a delete too");
        }
    });
    join_all(work).await;
}
