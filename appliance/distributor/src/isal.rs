//! The code computed by ISA-L's kernels, given the reference's coefficients: byte-identical, several times as fast.

use erasure_isa_l::ec;
use lamina_contract::Policy;

use crate::codec::{Codec, CodecError, choose, decoding_rows, fits, same_length};
use crate::matrix::{self, Matrix};

/// Columns done at a time: 18 fragments of 32 KiB stay in the second-level cache while the kernel passes over the inputs again for
/// every six outputs.
const BLOCK: usize = 32 << 10;

/// Table bytes per coefficient, as `ec_init_tables` lays them out.
const TABLE: usize = 32;

/// A codec over ISA-L.
#[derive(Debug)]
pub struct IsalCodec {
    policy: Policy,
    generator: Matrix,
    parity: Rows,
}

/// Coefficients expanded for the kernels.
#[derive(Debug)]
struct Rows {
    inputs: usize,
    outputs: usize,
    tables: Vec<u8>,
}

impl Rows {
    fn new(rows: &[u8], inputs: usize) -> Self {
        let outputs = rows.len() / inputs;
        let mut tables = vec![0; TABLE * rows.len()];
        if outputs > 0 {
            // Both are at most 255 by Policy.
            ec::init_tables(inputs as i32, outputs as i32, rows, &mut tables);
        }
        Self { inputs, outputs, tables }
    }

    /// `out` = rows × `data`. Every slice has `len` bytes, and the numbers are those of the rows: the callers check both.
    fn apply(&self, data: &[&[u8]], out: &mut [&mut [u8]], len: usize) {
        assert!(data.len() == self.inputs && out.len() == self.outputs, "as many fragments as coefficients");
        assert!(data.iter().all(|bytes| bytes.len() == len) && out.iter().all(|bytes| bytes.len() == len), "of one length");
        if self.outputs == 0 {
            return;
        }
        let mut at = 0;
        while at < len {
            let step = (len - at).min(BLOCK);
            // `at + step <= len`, the length of every slice, as asserted above: the kernel reads and writes `step` bytes at each pointer.
            let inputs: Vec<*const u8> = data.iter().map(|bytes| bytes[at..at + step].as_ptr()).collect();
            let mut outputs: Vec<*mut u8> = out.iter_mut().map(|bytes| bytes[at..at + step].as_mut_ptr()).collect();
            ec::encode_data(step as i32, self.inputs as i32, self.outputs as i32, &self.tables, &inputs, &mut outputs);
            at += step;
        }
    }
}

impl IsalCodec {
    /// The codec of `policy`.
    ///
    /// # Errors
    /// [`CodecError::Reference`].
    pub fn new(policy: Policy) -> Result<Self, CodecError> {
        let generator = matrix::generator(policy)?;
        let parity = Rows::new(generator.cells().get(policy.data() * policy.data()..).unwrap_or_default(), policy.data());
        Ok(Self { policy, generator, parity })
    }
}

impl Codec for IsalCodec {
    fn name(&self) -> &'static str {
        "isa-l"
    }

    fn encode(&self, data: &[&[u8]], parity: &mut [&mut [u8]]) -> Result<(), CodecError> {
        let len = same_length(data.iter().copied(), self.policy.data())?;
        if same_length(parity.iter().map(|parity| &**parity), self.policy.parity())? != len && !parity.is_empty() {
            return Err(CodecError::Shape);
        }
        self.parity.apply(data, parity, len);
        Ok(())
    }

    fn rebuild_into(&self, present: &[(usize, &[u8])], wanted: &[usize], out: &mut [&mut [u8]]) -> Result<(), CodecError> {
        let chosen = choose(self.policy, present)?;
        fits(&chosen, out, wanted.len())?;
        let rows = decoding_rows(&self.generator, &chosen, wanted)?;
        let len = chosen.first().map_or(0, |(_, bytes)| bytes.len());
        let data: Vec<&[u8]> = chosen.iter().map(|(_, bytes)| *bytes).collect();
        Rows::new(rows.cells(), self.policy.data()).apply(&data, out, len);
        Ok(())
    }
}
