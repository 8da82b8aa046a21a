//! The control side of one connection: what each vhost-user message does to the rings.
//!
//! Implements the `vhost` crate's request handler. Errors close the connection (see `connection.rs`). Invariants:
//! - A ring runs when it is enabled and has a kick descriptor, addresses and a size; it stops on GET_VRING_BASE, on a reset and
//!   with the connection. Its parameters do not change while it runs.
//! - A ring is stopped only when its writes are answered: a later writer must not be overtaken by them. Reads are waited for
//!   up to a limit, then they lose the guest's memory and are answered with an I/O error.
//! - Every memory table is a new [`GuestMemory`]; requests in flight hold the one they were made under.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use lamina_contract::answers::Announce;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{FdFlags, fcntl_setfd};
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight, VhostUserLog,
    VhostUserMemoryRegion, VhostUserShMemConfig, VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddrFlags,
    VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut, VhostUserProtocolFeatures};

use crate::channel::{Channel, Offer, Told};
use crate::completion::{Completions, Outstanding};
use crate::config;
use crate::counters::Counters;
use crate::memory::{GuestMemory, MAX_REGIONS, MemoryError, RegionSpec};
use crate::options::ServerOptions;
use crate::ring::{RingAddress, RingLayout, RingSize};
use crate::stopping::Stopping;
use crate::worker::{Alarm, Command, Disk, RingRun, Worker};

/// Pace of checks while waiting for answers.
const TICK: Duration = Duration::from_millis(50);

type RegionBase = vhost::VhostUserMemoryRegionBase;

/// One queue as the front end set it up.
#[derive(Default)]
struct Vring {
    size: Option<RingSize>,
    address: Option<RingAddress>,
    base: u16,
    kick: Option<OwnedFd>,
    call: Option<Arc<OwnedFd>>,
    error: Option<Arc<OwnedFd>>,
    enabled: bool,
    running: Option<Running>,
}

/// A queue in service.
struct Running {
    completions: Arc<Completions>,
    address: RingAddress,
    size: RingSize,
    event_idx: bool,
}

/// What the front end knows of the disk's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KnownSize {
    /// What it read on an earlier connection, if any: QEMU does not ask again when it comes back.
    Earlier,
    /// The present one: it asked, or was told to.
    Current,
    /// An old one: it is to be told.
    Outdated,
}

/// Everything that a connection set up.
pub(crate) struct Frontend {
    name: String,
    stream: UnixStream,
    options: Arc<ServerOptions>,
    counters: Arc<Counters>,
    stopping: Arc<Stopping>,
    disk: Arc<Disk>,
    alarm: Arc<dyn Alarm>,
    features: u64,
    protocol: VhostUserProtocolFeatures,
    known_size: KnownSize,
    channel: Option<Arc<Channel>>,
    /// It had no room when it was tried last.
    channel_full: bool,
    memory: Arc<GuestMemory>,
    vrings: Vec<Vring>,
    workers: Vec<Worker>,
}

impl Frontend {
    pub(crate) fn new(
        name: String,
        stream: UnixStream,
        disk: Disk,
        alarm: Arc<dyn Alarm>,
        options: Arc<ServerOptions>,
        counters: Arc<Counters>,
        stopping: Arc<Stopping>,
    ) -> Self {
        Self {
            name,
            stream,
            vrings: (0..options.queues).map(|_| Vring::default()).collect(),
            options,
            counters,
            stopping,
            disk: Arc::new(disk),
            alarm,
            features: 0,
            protocol: VhostUserProtocolFeatures::empty(),
            known_size: KnownSize::Earlier,
            channel: None,
            channel_full: false,
            memory: Arc::new(GuestMemory::default()),
            workers: Vec::new(),
        }
    }

    /// Ends the connection's service: nothing more is taken, reads in flight lose the guest's memory, writes are waited for
    /// (until the server's own deadline, if it stops). Answers how many requests were left unanswered.
    pub(crate) fn shut_down(&mut self) -> u32 {
        let detached: Vec<_> = (0..self.vrings.len()).filter_map(|i| self.detach(i, Patience::WithoutFrontEnd)).collect();
        if self.stopping.is_stopping() {
            // Answers that come in time still reach the guest.
            for running in &detached {
                self.wait(&running.completions, Patience::WithoutFrontEnd, |outstanding| outstanding == Outstanding::None);
            }
        }
        let mut left = 0;
        for running in &detached {
            let reads = running.completions.in_flight_reads();
            running.completions.revoke_reads(false);
            self.wait(&running.completions, Patience::WithoutFrontEnd, |outstanding| outstanding != Outstanding::Others);
            left += reads + running.completions.in_flight();
        }
        for worker in self.workers.drain(..) {
            worker.send(Command::Exit);
            // It ends at once unless the device keeps it inside submit; then it is left behind and ends when that returns.
            let patience = Instant::now() + Duration::from_secs(1);
            while worker.is_running() && Instant::now() < patience {
                std::thread::sleep(Duration::from_micros(200));
            }
            if !worker.is_running() {
                worker.join();
            }
        }
        left
    }

    fn vring(&mut self, index: u32) -> Result<&mut Vring> {
        self.vrings.get_mut(index as usize).ok_or(Error::InvalidParam)
    }

    fn idle_vring(&mut self, index: u32) -> Result<&mut Vring> {
        let vring = self.vring(index)?;
        if vring.running.is_some() { Err(Error::InvalidOperation("the ring is running")) } else { Ok(vring) }
    }

    fn worker(&mut self, index: usize) -> Result<&Worker> {
        let threads = usize::from(self.options.threads.min(self.options.queues));
        let slot = index % threads;
        while self.workers.len() <= slot {
            let name = format!("vblk-{}", self.name);
            let (disk, counters, alarm) = (self.disk.clone(), self.counters.clone(), self.alarm.clone());
            let worker = Worker::start(name, disk, counters, alarm, self.options.poll).map_err(Error::ReqHandlerError)?;
            self.workers.push(worker);
        }
        self.workers.get(slot).ok_or(Error::BackendInternalError)
    }

    /// Starts the ring if it has all it needs.
    fn start(&mut self, index: u32) -> Result<()> {
        let (memory, event_idx, counters) = (self.memory.clone(), config::event_idx(self.features), self.counters.clone());
        let vring = self.vring(index)?;
        let (Some(size), Some(address), true, None, true) =
            (vring.size, vring.address, vring.enabled, &vring.running, vring.kick.is_some())
        else {
            return Ok(());
        };
        let Some(layout) = RingLayout::new(&memory, address, size, event_idx) else {
            return Err(Error::InvalidOperation("a ring lies outside the guest's memory"));
        };
        let Some(kick) = vring.kick.take() else { return Ok(()) };
        let completions = Arc::new(Completions::new(index as u16, layout.clone(), vring.call.clone(), counters));
        let (next, error) = (vring.base, vring.error.clone());
        vring.running = Some(Running { completions: completions.clone(), address, size, event_idx });
        let run = Box::new(RingRun { number: index as u16, layout, completions, next, kick, error });
        self.worker(index as usize)?.send(Command::Attach(run));
        if self.known_size == KnownSize::Earlier {
            // Its guest goes on with what it knew before; the disk may have been resized in between.
            self.known_size = KnownSize::Outdated;
        }
        Ok(())
    }

    /// Takes a running ring away from its worker and remembers where it stood.
    fn detach(&mut self, index: usize, patience: Patience) -> Option<Running> {
        let running = self.vrings.get_mut(index)?.running.take()?;
        let (reply, answer) = mpsc::channel();
        match self.worker(index) {
            Ok(worker) => worker.send(Command::Detach(index as u16, reply)),
            Err(_) => return Some(running),
        }
        // The worker may be inside the device's submit.
        loop {
            match answer.recv_timeout(TICK) {
                Ok(next) => {
                    if let Some(vring) = self.vrings.get_mut(index) {
                        vring.base = next;
                    }
                    break;
                }
                Err(RecvTimeoutError::Timeout) if !self.must_give_up(patience) => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            }
        }
        Some(running)
    }

    /// Stops a ring as the front end asked, see the module's second invariant.
    fn stop(&mut self, index: usize) -> Result<()> {
        let Some(running) = self.detach(index, Patience::WithFrontEnd) else { return Ok(()) };
        let completions = running.completions;
        let patience = Instant::now() + self.options.read_patience;
        self.wait(&completions, Patience::WithFrontEnd, |outstanding| {
            outstanding == Outstanding::None || (outstanding == Outstanding::Reads && Instant::now() >= patience)
        });
        if completions.outstanding() != Outstanding::None {
            completions.revoke_reads(true);
        }
        if completions.outstanding() == Outstanding::None {
            // Who answered last may announce it later, with others: the front end takes its descriptor away as soon as it hears from us.
            completions.announce();
            return Ok(());
        }
        // The front end is gone (or the server stops) and writes are still out: put it back, so that the end of the
        // connection waits for them.
        if let Some(vring) = self.vrings.get_mut(index) {
            vring.running = Some(Running { completions, ..running });
        }
        Err(Error::Disconnected)
    }

    /// Waits until `enough` holds, or there is a reason to give up.
    fn wait(&self, completions: &Completions, patience: Patience, enough: impl Fn(Outstanding) -> bool) {
        let start = Instant::now();
        let mut next_warning = Duration::from_secs(1);
        while !enough(completions.outstanding()) && !self.must_give_up(patience) {
            completions.wait(TICK);
            if start.elapsed() >= next_warning {
                next_warning *= 8;
                let requests = completions.in_flight();
                tracing::warn!(socket = %self.name, requests, "a stopping ring waits for the volume's answers");
            }
        }
    }

    fn must_give_up(&self, patience: Patience) -> bool {
        match patience {
            Patience::WithFrontEnd => self.stopping.is_stopping() || has_hung_up(&self.stream),
            Patience::WithoutFrontEnd => self.stopping.is_overdue(),
        }
    }

    fn set_memory(&mut self, memory: GuestMemory) {
        self.memory = Arc::new(memory);
        let mut replies = Vec::new();
        for index in 0..self.vrings.len() {
            let Some(running) = self.vrings.get(index).and_then(|v| v.running.as_ref()) else { continue };
            let layout = RingLayout::new(&self.memory, running.address, running.size, running.event_idx);
            let (reply, answer) = mpsc::channel();
            if let Ok(worker) = self.worker(index) {
                worker.send(Command::SetLayout(index as u16, layout, reply));
                replies.push(answer);
            }
        }
        // Until the workers have changed over, they may look at the old table: the front end must not unmap it before our reply.
        for answer in replies {
            while answer.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) && !self.must_give_up(Patience::WithFrontEnd) {}
        }
    }

    /// Whether messages that ask for a reply get one.
    pub(crate) fn sends_replies(&self) -> bool {
        self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK)
    }

    /// Takes over the channel on which the front end wants to be told things; the last one counts.
    pub(crate) fn set_channel(&mut self, offer: Offer) -> Result<()> {
        if !self.protocol.contains(VhostUserProtocolFeatures::BACKEND_REQ) {
            return Err(Error::InvalidOperation("a channel for the back end's messages was not negotiated"));
        }
        self.channel = Some(Arc::new(offer.channel()?));
        self.channel_full = false;
        Ok(())
    }

    /// The disk has another size.
    pub(crate) fn size_changed(&mut self) {
        if self.known_size == KnownSize::Current {
            self.known_size = KnownSize::Outdated;
        }
    }

    /// Tells the front end of a new size if it should be told and can be. Answers the channel if that has no room: when it can be written,
    /// [`Frontend::tell_size_now`] is due.
    pub(crate) fn tell_size(&mut self) -> Option<Arc<Channel>> {
        let due = self.known_size == KnownSize::Outdated && self.protocol.contains(VhostUserProtocolFeatures::CONFIG);
        let channel = self.channel.clone().filter(|_| due)?;
        if !self.channel_full {
            match channel.tell_config_changed() {
                Told::Yes => self.told_size(),
                Told::Full => self.channel_full = true,
                Told::Gone => self.give_channel_up("it is closed"),
            }
        }
        self.channel_full.then_some(channel)
    }

    /// As [`Frontend::tell_size`], when a channel that was full says that it can be written.
    pub(crate) fn tell_size_now(&mut self) {
        match self.channel.as_ref().map(|channel| channel.tell_config_changed()) {
            None => {}
            Some(Told::Yes) => self.told_size(),
            // Somebody else writes to it: waiting for room could go on for ever, at the CPU's full speed.
            Some(Told::Full) => self.give_channel_up("it says that it has room and has none"),
            Some(Told::Gone) => self.give_channel_up("it is closed"),
        }
    }

    fn told_size(&mut self) {
        self.known_size = KnownSize::Current;
        self.channel_full = false;
        self.counters.config_changes.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(socket = %self.name, "front end told to read the configuration again");
    }

    fn give_channel_up(&mut self, reason: &'static str) {
        self.channel = None;
        self.channel_full = false;
        if self.counters.may_complain() {
            tracing::warn!(socket = %self.name, reason, "the front end cannot be told of a new size; it sees it when it asks next");
        }
    }

    fn refuse(&self, error: &MemoryError) -> Error {
        if self.counters.may_complain() {
            tracing::warn!(socket = %self.name, %error, "guest memory refused");
        }
        Error::InvalidParam
    }

    fn update_write_through(&self) {
        let write_back = self.counters.write_back.load(Ordering::Relaxed);
        self.disk
            .write_through
            .store(config::write_through(self.features, write_back, self.options.write_cache), Ordering::Relaxed);
    }

    fn reset(&mut self) -> Result<()> {
        for index in 0..self.vrings.len() {
            self.stop(index)?;
            if let Some(vring) = self.vrings.get_mut(index) {
                *vring = Vring::default();
            }
        }
        Ok(())
    }
}

/// Whose patience a wait depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Patience {
    /// The front end waits for us; it may hang up.
    WithFrontEnd,
    /// It is gone; only the server's own end counts.
    WithoutFrontEnd,
}

/// Whether the other side closed the connection.
pub(crate) fn has_hung_up(stream: &UnixStream) -> bool {
    let mut fds = [PollFd::new(stream, PollFlags::RDHUP)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&now)).is_ok()
        && fds.iter().any(|fd| fd.revents().intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR))
}

/// Checks a kick, call or error descriptor: anything but an eventfd could block whoever writes to it.
fn event_descriptor(file: File) -> Result<OwnedFd> {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).map_err(Error::ReqHandlerError)?;
    if link.as_os_str() != "anon_inode:[eventfd]" {
        return Err(Error::InvalidOperation("a kick, call or error descriptor is not an eventfd"));
    }
    let set = || -> rustix::io::Result<()> {
        fcntl_setfd(&file, FdFlags::CLOEXEC)?;
        fcntl_setfl(&file, fcntl_getfl(&file)? | OFlags::NONBLOCK)
    };
    set().map_err(|error| Error::ReqHandlerError(error.into()))?;
    Ok(OwnedFd::from(file))
}

const UNSUPPORTED: Error = Error::InvalidOperation("not supported");

impl VhostUserBackendReqHandlerMut for Frontend {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.reset()
    }

    fn reset_device(&mut self) -> Result<()> {
        // The write-back choice stays: QEMU goes on showing it to the guest, which flushes (or not) accordingly.
        self.reset()
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(config::offered(&self.disk.device.geometry()))
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !config::offered(&self.disk.device.geometry()) != 0 {
            return Err(Error::FeatureMismatch);
        }
        self.features = features;
        self.update_write_through();
        if features & config::F_PROTOCOL_FEATURES == 0 {
            for index in 0..self.options.queues {
                self.vring(u32::from(index))?.enabled = true;
                self.start(u32::from(index))?;
            }
        }
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<RegionBase>>> {
        let mut memory = GuestMemory::default();
        for (region, file) in regions.iter().zip(&files) {
            let spec = RegionSpec {
                guest: region.guest_phys_addr,
                user: region.user_addr,
                len: region.memory_size,
                file_offset: region.mmap_offset,
            };
            memory = memory.with(spec, file, self.options.max_guest_memory).map_err(|error| self.refuse(&error))?;
        }
        self.set_memory(memory);
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let max = self.options.queue_size;
        let size = RingSize::new(num, max).ok_or(Error::InvalidParam)?;
        self.idle_vring(index)?.size = Some(size);
        Ok(())
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        let address = RingAddress { descriptors: descriptor, available, used };
        if self.vring(index)?.running.as_ref().is_some_and(|running| running.address == address) {
            return Ok(());
        }
        self.idle_vring(index)?.address = Some(address);
        self.start(index)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let base = u16::try_from(base).map_err(|_| Error::InvalidParam)?;
        self.idle_vring(index)?.base = base;
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        self.vring(index)?;
        self.stop(index as usize)?;
        let vring = self.vring(index)?;
        vring.kick = None;
        Ok(VhostUserVringState::new(index, u32::from(vring.base)))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        // Without a descriptor the front end asks us to poll for ever.
        let kick = event_descriptor(fd.ok_or(UNSUPPORTED)?)?;
        let index = u32::from(index);
        if self.vring(index)?.running.is_some() {
            self.worker(index as usize)?.send(Command::SetKick(index as u16, kick));
            return Ok(());
        }
        self.vring(index)?.kick = Some(kick);
        self.start(index)
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let call = fd.map(event_descriptor).transpose()?.map(Arc::new);
        let vring = self.vring(u32::from(index))?;
        vring.call.clone_from(&call);
        if let Some(running) = &vring.running {
            running.completions.set_call(call);
        }
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let error = fd.map(event_descriptor).transpose()?.map(Arc::new);
        self.vring(u32::from(index))?.error = error;
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS)
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        let offered = self.get_protocol_features()?.bits();
        if features & !offered != 0 {
            return Err(Error::FeatureMismatch);
        }
        self.protocol = VhostUserProtocolFeatures::from_bits_truncate(features);
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(u64::from(self.options.queues))
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        let vring = self.vring(index)?;
        vring.enabled = enable;
        if vring.running.is_some() {
            self.worker(index as usize)?.send(Command::Enable(index as u16, enable));
            return Ok(());
        }
        self.start(index)
    }

    fn get_config(&mut self, offset: u32, size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        let write_back = self.counters.write_back.load(Ordering::Relaxed);
        let space = config::space(&self.disk.device.geometry(), self.options.queues, write_back);
        let answer = config::read(&space, offset, size).ok_or(Error::InvalidParam)?;
        if config::shows_capacity(offset, size) {
            self.known_size = KnownSize::Current;
        }
        Ok(answer)
    }

    fn set_config(&mut self, offset: u32, buf: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        let write_back = config::written(offset, buf).ok_or(Error::InvalidParam)?;
        self.counters.write_back.store(write_back, Ordering::Relaxed);
        self.update_write_through();
        Ok(())
    }

    fn set_gpu_socket(&mut self, _gpu_backend: GpuBackend) -> Result<()> {
        Err(UNSUPPORTED)
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        Err(UNSUPPORTED)
    }

    fn get_inflight_fd(&mut self, _inflight: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        Err(UNSUPPORTED)
    }

    fn set_inflight_fd(&mut self, _inflight: &VhostUserInflight, _file: File) -> Result<()> {
        Err(UNSUPPORTED)
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MAX_REGIONS as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        fd: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<RegionBase>> {
        let spec = RegionSpec {
            guest: region.guest_phys_addr,
            user: region.user_addr,
            len: region.memory_size,
            file_offset: region.mmap_offset,
        };
        let memory = self.memory.with(spec, &fd, self.options.max_guest_memory).map_err(|error| self.refuse(&error))?;
        self.set_memory(memory);
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let (guest, user, len) = (region.guest_phys_addr, region.user_addr, region.memory_size);
        let memory = self.memory.without(guest, user, len).map_err(|error| self.refuse(&error))?;
        self.set_memory(memory);
        Ok(())
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _fd: File,
    ) -> Result<Option<File>> {
        Err(UNSUPPORTED)
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(UNSUPPORTED)
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(UNSUPPORTED)
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        Err(UNSUPPORTED)
    }
}
