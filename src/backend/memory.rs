//! The machine's memory for what may be large: where there is too little, that is an error and not the program's end.

use crate::error::{Error, Result};

/// Makes room for so many elements more, as [`Vec::reserve`] does.
///
/// # Errors
/// Kind `Device`: the machine has not the memory, or a limit on this process is lower.
pub fn reserve<T>(vec: &mut Vec<T>, more: usize) -> Result<()> {
    vec.try_reserve(more).map_err(|_| {
        let megabytes = (more as f64 * size_of::<T>() as f64) / 1e6;
        Error::device(format!("cannot get {megabytes:.1} MB of the machine's memory"))
            .hint("give the merge less with --host-memory, or use fewer --threads")
    })
}

/// Makes a vector at least so long; what it has stays.
///
/// # Errors
/// Those of [`reserve`].
pub fn lengthen<T: Clone + Default>(vec: &mut Vec<T>, len: usize) -> Result<()> {
    let more = len.saturating_sub(vec.len());
    reserve(vec, more)?;
    vec.resize(vec.len() + more, T::default());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn memory_that_cannot_be_had_is_an_error() {
        let mut bytes = vec![7_u8];
        for more in [usize::MAX, isize::MAX as usize] {
            let error = reserve(&mut bytes, more).unwrap_err();
            assert_eq!(error.kind, Kind::Device);
            assert!(error.message.ends_with(" MB of the machine's memory"), "{error}");
            assert!(error.hint.unwrap().contains("--host-memory"));
        }
        lengthen(&mut vec![0_u64], usize::MAX).unwrap_err();
        assert_eq!(bytes, [7]);
    }

    #[test]
    fn a_vector_is_lengthened_and_never_cut() {
        let mut words = vec![7_u32];
        lengthen(&mut words, 3).unwrap();
        assert_eq!(words, [7, 0, 0]);
        lengthen(&mut words, 1).unwrap();
        assert_eq!(words, [7, 0, 0]);
    }
}
