# Register offsets and bit names of the 8254x family (Intel 8254x software developer's manual, chapter 13, table 13-2). No code.

cdef enum:
    # 13.4: general, EEPROM, MDI, flow control
    CTRL = 0x0000
    CTRL_DUP = 0x0004
    STATUS = 0x0008
    EECD = 0x0010
    EERD = 0x0014
    CTRL_EXT = 0x0018
    MDIC = 0x0020
    FCAL = 0x0028
    FCAH = 0x002C
    FCT = 0x0030
    VET = 0x0038
    FCTTV = 0x0170
    TXCW = 0x0178
    RXCW = 0x0180
    LEDCTL = 0x0E00
    PBA = 0x1000
    # interrupts
    ICR = 0x00C0
    ITR = 0x00C4
    ICS = 0x00C8
    IMS = 0x00D0
    IMC = 0x00D8
    # receive
    RCTL = 0x0100
    FCRTL = 0x2160
    FCRTH = 0x2168
    RDFH = 0x2410
    RDFT = 0x2418
    RDFHS = 0x2420
    RDFTS = 0x2428
    RDFPC = 0x2430
    RDBAL = 0x2800
    RDBAH = 0x2804
    RDLEN = 0x2808
    RDH = 0x2810
    RDT = 0x2818
    RDTR = 0x2820
    RXDCTL = 0x2828
    RADV = 0x282C
    RSRPD = 0x2C00
    RXCSUM = 0x5000
    MTA = 0x5200
    RA = 0x5400
    VFTA = 0x5600
    # transmit
    TCTL = 0x0400
    TIPG = 0x0410
    AIT = 0x0458
    TDFH = 0x3410
    TDFT = 0x3418
    TDFHS = 0x3420
    TDFTS = 0x3428
    TDFPC = 0x3430
    TDBAL = 0x3800
    TDBAH = 0x3804
    TDLEN = 0x3808
    TDH = 0x3810
    TDT = 0x3818
    TIDV = 0x3820
    TXDCTL = 0x3828
    TADV = 0x382C
    TSPMT = 0x3830
    # 13.7: statistics
    CRCERRS = 0x4000
    MPC = 0x4010
    SCC = 0x4014
    FCRUC = 0x4058
    PRC64 = 0x405C
    GPRC = 0x4074
    BPRC = 0x4078
    MPRC = 0x407C
    GPTC = 0x4080
    GORCL = 0x4088
    GORCH = 0x408C
    GOTCL = 0x4090
    GOTCH = 0x4094
    RNBC = 0x40A0
    RUC = 0x40A4
    RFC = 0x40A8
    ROC = 0x40AC
    RJC = 0x40B0
    MGTPRC = 0x40B4
    TORL = 0x40C0
    TORH = 0x40C4
    TOTL = 0x40C8
    TOTH = 0x40CC
    TPR = 0x40D0
    TPT = 0x40D4
    PTC64 = 0x40D8
    MPTC = 0x40F0
    BPTC = 0x40F4
    TSCTC = 0x40F8
    TSCTFC = 0x40FC
    # wake-up, management, diagnostics
    WUC = 0x5800
    WUFC = 0x5808
    WUS = 0x5810
    MANC = 0x5820
    IPAV = 0x5838
    IP4AT = 0x5840
    IP6AT = 0x5880
    WUPM = 0x5A00
    SWSM = 0x5B50
    FFLT = 0x5F00
    FFMT = 0x9000
    FFVT = 0x9800
    PBM = 0x10000

cdef enum:
    CTRL_SLU = 0x40
    CTRL_RST = 0x04000000
    CTRL_VME = 0x40000000
    STATUS_LU = 0x2
    RCTL_EN = 0x2
    RCTL_SBP = 0x4
    RCTL_UPE = 0x8
    RCTL_MPE = 0x10
    RCTL_LPE = 0x20
    RCTL_LBM = 0xC0
    RCTL_LBM_MAC = 0x40             # set in 01 (MAC, as the family's later members) and in 11 (PHY or transceiver)
    RCTL_BAM = 0x8000
    RCTL_VFE = 0x40000
    RCTL_BSEX = 0x02000000
    RCTL_SECRC = 0x04000000
    TCTL_EN = 0x2
    RXCSUM_IPOFL = 0x100
    RXCSUM_TUOFL = 0x200
    RAH_AV = 0x80000000

cdef enum:                          # ICR, 13.4.17
    ICR_TXDW = 0x1
    ICR_TXQE = 0x2
    ICR_LSC = 0x4
    ICR_RXDMT0 = 0x10
    ICR_RXO = 0x40
    ICR_RXT0 = 0x80
    ICR_MDAC = 0x200

cdef enum:                          # transmit descriptors, 3.3: bits of the lower dword
    TXD_DTYP_D = 0x00100000
    TXD_EOP = 0x01000000
    TXD_IC = 0x04000000             # legacy: insert checksum
    TXD_TSE = 0x04000000            # data, context: TCP segmentation
    TXD_RS = 0x08000000
    TXD_RPS = 0x10000000
    TXD_DEXT = 0x20000000
    TXD_VLE = 0x40000000
    TXD_IDE = 0x80000000
    TXD_CTX_TCP = 0x01000000        # context: packet is TCP (else UDP), IPv4 (else IPv6)
    TXD_CTX_IP = 0x02000000
    TXD_STAT_DD = 0x1
    TXD_STAT_EC = 0x2
    TXD_STAT_LC = 0x4
    TXD_STAT_TU = 0x8
    POPTS_IXSM = 0x1
    POPTS_TXSM = 0x2

cdef enum:                          # receive descriptor status and errors, 3.2.3
    RXD_DD = 0x01
    RXD_EOP = 0x02
    RXD_IXSM = 0x04
    RXD_VP = 0x08
    RXD_TCPCS = 0x20
    RXD_IPCS = 0x40
    RXD_ERR_TCPE = 0x20
    RXD_ERR_IPE = 0x40

cdef enum:                          # EECD 13.4.3, EERD 13.4.4
    EECD_SK = 0x1
    EECD_CS = 0x2
    EECD_DI = 0x4
    EECD_DO = 0x8
    EECD_WRITABLE = 0x77            # SK, CS, DI, FWE, REQ
    EECD_GNT = 0x80
    EECD_PRES = 0x100
    EERD_START = 0x1
    EERD_DONE = 0x10

cdef enum:                          # MDIC 13.4.11; PHY registers 13.5
    MDIC_DATA = 0xFFFF
    MDIC_REG_SHIFT = 16
    MDIC_PHY_SHIFT = 21
    MDIC_WRITE = 0x04000000
    MDIC_READ = 0x08000000
    MDIC_READY = 0x10000000
    MDIC_INT_EN = 0x20000000
    MDIC_ERROR = 0x40000000
    PHY_CTRL = 0
    PHY_STATUS = 1
    PHY_ID2 = 3
    PHY_LPA = 5
    PHY_CTRL_RESET = 0x8000
    PHY_CTRL_LOOPBACK = 0x4000
    PHY_CTRL_AN_EN = 0x1000
    PHY_CTRL_RESTART = 0x0200
    PHY_STATUS_LINK = 0x0004
    PHY_STATUS_AN_DONE = 0x0020
    PHY_LPA_ACK = 0x4000
