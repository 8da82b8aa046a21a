//! The suite against the stores that keep bytes.

use lamina_contract::Timestamp;
use lamina_formats::drive::{DriveId, DriveIdentity, PoolId};
use lamina_stores::conformance::conformance;
use lamina_stores::{DriveStore, MemoryStore};

#[tokio::test]
async fn the_memory_store_conforms() {
    conformance(&MemoryStore::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_drive_store_conforms() {
    let directory = tempfile::tempdir().expect("a directory");
    let identity = DriveIdentity { drive: DriveId(1), pool: PoolId(2), slot: 0, created: Timestamp(0) };
    DriveStore::claim(directory.path(), &identity).expect("claimed");
    let store = DriveStore::open(directory.path(), PoolId(2)).expect("opened");
    conformance(&store).await;
    let mut left = std::fs::read_dir(directory.path().join("objects")).expect("objects").count();
    left += std::fs::read_dir(directory.path().join("temporary")).expect("temporary").count();
    assert_eq!(left, 0, "no empty directories and no temporary files stay");
}
