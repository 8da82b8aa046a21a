//! A store in memory: the `object_store` crate's own, which needs nothing added. For tests and for trying things out.

pub use object_store::memory::InMemory as MemoryStore;
