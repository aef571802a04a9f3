#include "use_kvc.h"

int main(void) { return use_kvc() == KVC_OK ? 0 : 1; }
