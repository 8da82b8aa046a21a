//! A guard against guest memory that goes away under us: a shrunk memfd must not kill every other tenant.
//!
//! Touching a mapped page behind the end of its file raises SIGBUS. The handler here looks the address up in a registry of
//! guest mappings; if it lies in one, it maps a zero page over the faulting page, marks that mapping broken and lets the
//! access run again. Any other SIGBUS goes to the handler that was there before (the default: the process dies).
//!
//! Invariants: the handler takes no lock and allocates nothing; a slot is read under a sequence number, so that a slot that is
//! being reused never matches; a registered mapping stays registered for as long as anyone can touch it
//! ([`Registration`] is owned by the mapping).

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};

use parking_lot::Mutex;

/// Guest mappings of one process: 1,000 volumes with 16 regions each. 40 bytes a slot, touched only as far as used.
const SLOTS: usize = 16_384;

struct Slot {
    /// Odd while the slot changes.
    sequence: AtomicU64,
    /// First byte; 0 when the slot is free.
    start: AtomicUsize,
    end: AtomicUsize,
    page: AtomicUsize,
    broken: AtomicBool,
}

static REGISTRY: [Slot; SLOTS] = [const {
    Slot {
        sequence: AtomicU64::new(0),
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        page: AtomicUsize::new(0),
        broken: AtomicBool::new(false),
    }
}; SLOTS];

/// Slots at and above this were never used: bounds the handler's search.
static HIGH_WATER: AtomicUsize = AtomicUsize::new(0);
static FREE: Mutex<Vec<usize>> = Mutex::new(Vec::new());
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();
static INSTALL: Mutex<bool> = Mutex::new(false);

/// A mapping's entry in the registry; dropping it takes the entry out.
#[derive(Debug)]
pub(crate) struct Registration {
    slot: usize,
}

impl Registration {
    /// Registers `len` bytes at `start`, backed by pages of `page` bytes. `None` when the registry is full.
    pub(crate) fn new(start: usize, len: usize, page: usize) -> Option<Self> {
        let index = {
            let mut free = FREE.lock();
            match free.pop() {
                Some(index) => index,
                None => {
                    let next = HIGH_WATER.load(Ordering::Relaxed);
                    if next == SLOTS {
                        return None;
                    }
                    HIGH_WATER.store(next + 1, Ordering::Release);
                    next
                }
            }
        };
        let slot = REGISTRY.get(index)?;
        slot.change(start, start + len, page);
        Some(Self { slot: index })
    }

    /// Whether a page of this mapping was lost. For ever, once it happened.
    pub(crate) fn is_broken(&self) -> bool {
        REGISTRY.get(self.slot).is_none_or(|slot| slot.broken.load(Ordering::Relaxed))
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(slot) = REGISTRY.get(self.slot) {
            slot.change(0, 0, 0);
            FREE.lock().push(self.slot);
        }
    }
}

impl Slot {
    /// Only the owner of the slot's index calls this.
    fn change(&self, start: usize, end: usize, page: usize) {
        self.sequence.fetch_add(1, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        self.start.store(start, Ordering::Relaxed);
        self.end.store(end, Ordering::Relaxed);
        self.page.store(page, Ordering::Relaxed);
        self.broken.store(false, Ordering::Relaxed);
        self.sequence.fetch_add(1, Ordering::AcqRel);
    }

    /// The page size when `address` lies in this slot's mapping.
    fn holds(&self, address: usize) -> Option<usize> {
        let before = self.sequence.load(Ordering::Acquire);
        let (start, end, page) =
            (self.start.load(Ordering::Relaxed), self.end.load(Ordering::Relaxed), self.page.load(Ordering::Relaxed));
        fence(Ordering::SeqCst);
        let stable = before.is_multiple_of(2) && self.sequence.load(Ordering::Relaxed) == before;
        (stable && start != 0 && (start..end).contains(&address)).then_some(page)
    }
}

/// Installs the handler, once per process.
///
/// # Errors
/// What `sigaction` answers.
pub(crate) fn install() -> io::Result<()> {
    let mut installed = INSTALL.lock();
    if *installed {
        return Ok(());
    }
    let mut previous = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: an all-zero sigaction is a valid value (SIG_DFL, empty mask); the calls get pointers to live values; the handler
    // is async-signal-safe: atomics and mmap only. PREVIOUS is set before the handler can run.
    unsafe {
        if libc::sigaction(libc::SIGBUS, ptr::null(), previous.as_mut_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
        PREVIOUS.get_or_init(|| previous.assume_init());
        let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_sigbus;
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
        if libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    *installed = true;
    Ok(())
}

extern "C" fn on_sigbus(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel hands a valid siginfo; si_addr is meaningful for codes > 0 (raised by a fault, not by kill).
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    if code > 0 && cover(address) {
        return;
    }
    let Some(previous) = PREVIOUS.get() else { return };
    match previous.sa_sigaction {
        libc::SIG_DFL | libc::SIG_IGN => {
            // A fault cannot be ignored: back to the default, and the access runs again and ends the process.
            // SAFETY: `previous` is what sigaction returned.
            unsafe { libc::sigaction(libc::SIGBUS, ptr::from_ref(previous), ptr::null_mut()) };
            if code <= 0 && previous.sa_sigaction == libc::SIG_DFL {
                // SAFETY: raise is async-signal-safe.
                unsafe { libc::raise(signal) };
            }
        }
        handler if previous.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: it was installed with SA_SIGINFO, so it has this signature.
            let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                unsafe { std::mem::transmute::<usize, _>(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: it was installed without SA_SIGINFO, so it has this signature.
            let handler: extern "C" fn(libc::c_int) = unsafe { std::mem::transmute::<usize, _>(handler) };
            handler(signal);
        }
    }
}

/// Maps zeros over the page of `address` if it is a guest's.
fn cover(address: usize) -> bool {
    let used = HIGH_WATER.load(Ordering::Acquire).min(SLOTS);
    for slot in REGISTRY.iter().take(used) {
        let Some(page) = slot.holds(address) else { continue };
        let start = address & !(page - 1);
        // SAFETY: `start..start + page` is one page of a guest mapping that the faulting thread is using, so it stays mapped
        // (its owner holds the Registration); replacing a page of it by zeros breaks nothing but the guest's data, which
        // is gone. errno is restored because the interrupted code may be about to read it.
        unsafe {
            let errno = libc::__errno_location();
            let saved = *errno;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
            let page = libc::mmap(start as *mut libc::c_void, page, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
            *errno = saved;
            if page == libc::MAP_FAILED {
                return false;
            }
        }
        slot.broken.store(true, Ordering::SeqCst);
        return true;
    }
    false
}
