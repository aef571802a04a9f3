#include "use_kvc.h"

int main() { return use_kvc() == KVC_OK ? 0 : 1; }
