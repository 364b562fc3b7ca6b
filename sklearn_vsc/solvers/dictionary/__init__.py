"""Dictionary learning: codes and atoms in turn, pure functions of tensors."""
