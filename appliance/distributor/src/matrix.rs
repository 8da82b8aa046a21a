//! Arithmetic of the code: GF(2^8) modulo x^8+x^4+x^3+x^2+1 (0x11D), the generator matrix, and its inverses.
//!
//! The generator is the one that crate reed-solomon-erasure defines ([`MatrixId::VandermondeSystematic`]); it is read out of that crate by
//! encoding unit vectors, so that it cannot drift from the reference. Any X of its Y rows are invertible: the exhaustive test of the
//! codec shows it for 11+7. (ISA-L's own `gf_gen_rs_matrix` is not like that and is never used.)
//!
//! [`MatrixId::VandermondeSystematic`]: lamina_formats::fragment::MatrixId::VandermondeSystematic

use lamina_contract::Policy;
use reed_solomon_erasure::galois_8::ReedSolomon;

use crate::codec::CodecError;

const POLYNOMIAL: u16 = 0x11d;

/// Powers of the generator element 2, twice over so that a sum of two logarithms needs no reduction; and logarithms.
const fn tables() -> ([u8; 512], [u8; 256]) {
    let (mut exp, mut log) = ([0_u8; 512], [0_u8; 256]);
    let mut value: u16 = 1;
    let mut power = 0;
    while power < 255 {
        exp[power] = value as u8;
        exp[power + 255] = value as u8;
        log[value as usize] = power as u8;
        value <<= 1;
        if value & 0x100 != 0 {
            value ^= POLYNOMIAL;
        }
        power += 1;
    }
    (exp, log)
}

static TABLES: ([u8; 512], [u8; 256]) = tables();

/// Product in the field.
#[must_use]
pub(crate) fn mul(a: u8, b: u8) -> u8 {
    if a == 0 || b == 0 {
        return 0;
    }
    let (exp, log) = &TABLES;
    exp[usize::from(log[usize::from(a)]) + usize::from(log[usize::from(b)])]
}

/// 1/a; `a` is not 0.
fn inverse_of(a: u8) -> u8 {
    let (exp, log) = &TABLES;
    exp[255 - usize::from(log[usize::from(a)])]
}

/// Rows of field elements, each of the same length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Matrix {
    columns: usize,
    cells: Vec<u8>,
}

impl Matrix {
    pub(crate) fn zero(rows: usize, columns: usize) -> Self {
        Self { columns, cells: vec![0; rows * columns] }
    }

    pub(crate) fn rows(&self) -> usize {
        self.cells.len() / self.columns
    }

    pub(crate) fn row(&self, row: usize) -> &[u8] {
        &self.cells[row * self.columns..(row + 1) * self.columns]
    }

    pub(crate) fn row_mut(&mut self, row: usize) -> &mut [u8] {
        &mut self.cells[row * self.columns..(row + 1) * self.columns]
    }

    /// All rows, one behind the other.
    pub(crate) fn cells(&self) -> &[u8] {
        &self.cells
    }

    /// `row` × this.
    fn combine(&self, row: &[u8]) -> Vec<u8> {
        let mut out = vec![0; self.columns];
        for (k, &factor) in row.iter().enumerate() {
            for (cell, &value) in out.iter_mut().zip(self.row(k)) {
                *cell ^= mul(factor, value);
            }
        }
        out
    }

    /// Gauss-Jordan; `None` for a singular matrix.
    fn inverted(mut self) -> Option<Self> {
        let size = self.columns;
        let mut out = Self::zero(size, size);
        for at in 0..size {
            out.row_mut(at)[at] = 1;
        }
        for at in 0..size {
            let pivot = (at..size).find(|&row| self.row(row)[at] != 0)?;
            self.swap(at, pivot);
            out.swap(at, pivot);
            let scale = inverse_of(self.row(at)[at]);
            self.scale(at, scale);
            out.scale(at, scale);
            for row in (0..size).filter(|&row| row != at) {
                let factor = self.row(row)[at];
                if factor != 0 {
                    self.subtract(row, at, factor);
                    out.subtract(row, at, factor);
                }
            }
        }
        Some(out)
    }

    fn swap(&mut self, a: usize, b: usize) {
        for column in 0..self.columns {
            self.cells.swap(a * self.columns + column, b * self.columns + column);
        }
    }

    fn scale(&mut self, row: usize, factor: u8) {
        for cell in self.row_mut(row) {
            *cell = mul(*cell, factor);
        }
    }

    fn subtract(&mut self, row: usize, other: usize, factor: u8) {
        for column in 0..self.columns {
            self.cells[row * self.columns + column] ^= mul(self.cells[other * self.columns + column], factor);
        }
    }
}

/// The Y × X generator of a policy: fragment i is row i times the data fragments.
pub(crate) fn generator(policy: Policy) -> Result<Matrix, CodecError> {
    let (x, p) = (policy.data(), policy.parity());
    let mut matrix = Matrix::zero(policy.total(), x);
    for at in 0..x {
        matrix.row_mut(at)[at] = 1;
    }
    if p == 0 {
        return Ok(matrix);
    }
    let reference = ReedSolomon::new(x, p)?;
    for column in 0..x {
        let data: Vec<[u8; 1]> = (0..x).map(|row| [u8::from(row == column)]).collect();
        let mut parity = vec![[0_u8; 1]; p];
        reference.encode_sep(&data, &mut parity)?;
        for (row, [value]) in parity.into_iter().enumerate() {
            matrix.row_mut(x + row)[column] = value;
        }
    }
    Ok(matrix)
}

/// The rows that make fragments `wanted` out of fragments `present` (exactly X of them).
pub(crate) fn decoder(generator: &Matrix, present: &[usize], wanted: &[usize]) -> Option<Matrix> {
    let x = generator.columns;
    if present.len() != x || present.iter().chain(wanted).any(|&index| index >= generator.rows()) {
        return None;
    }
    let mut chosen = Matrix::zero(x, x);
    for (row, &index) in present.iter().enumerate() {
        chosen.row_mut(row).copy_from_slice(generator.row(index));
    }
    let to_data = chosen.inverted()?;
    let mut rows = Matrix::zero(wanted.len(), x);
    for (row, &index) in wanted.iter().enumerate() {
        let combined = to_data.combine(generator.row(index));
        rows.row_mut(row).copy_from_slice(&combined);
    }
    Some(rows)
}

#[cfg(test)]
mod tests {
    use super::{Matrix, decoder, generator, inverse_of, mul};

    #[test]
    fn the_field_has_inverses_and_distributes() {
        for a in 1..=255_u8 {
            assert_eq!(mul(a, inverse_of(a)), 1);
            assert_eq!(mul(a, 0x53 ^ 0xca), mul(a, 0x53) ^ mul(a, 0xca));
        }
        // 0x80 · 2 wraps by the polynomial 0x11D.
        assert_eq!(mul(0x80, 2), 0x1d);
    }

    #[test]
    fn a_repeated_row_has_no_decoder() {
        let rows = generator("4+2".parse().expect("a policy")).expect("a matrix");
        assert!(decoder(&rows, &[0, 1, 2, 2], &[3]).is_none());
        assert!(decoder(&rows, &[0, 1, 2], &[3]).is_none());
        assert!(decoder(&rows, &[0, 1, 2, 9], &[3]).is_none());
        let trivial = decoder(&rows, &[0, 1, 2, 3], &[3]).expect("a decoder");
        let mut expected = Matrix::zero(1, 4);
        expected.row_mut(0)[3] = 1;
        assert_eq!(trivial, expected);
    }
}
